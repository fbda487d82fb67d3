"""Which part of the network runs in which floating type."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """Autocast of backbone and neck, and of the head.

    Attributes:
        device: type of the device, such as `cuda`.
        features: `bf16`, `fp16` or `fp32` for backbone and neck.
        head: `fp32`, or `same` as backbone and neck. Geometry and box values are float32 in any
            case; the model sees to that.
    """

    device: str
    features: str = "fp32"
    head: str = "fp32"

    @classmethod
    def of_training(cls, device: str, features: str, head: str) -> Precision:
        """What was asked for; float32 on the CPU, where half types are emulated and slow."""
        return cls(device) if device == "cpu" else cls(device, features, head)

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale."""
        return self.features == "fp16"

    def _autocast(self, on: bool) -> AbstractContextManager[object]:
        return torch.autocast(self.device, TYPES[self.features] if on else None, enabled=on)

    def for_features(
        self, pyramid: Callable[[Tensor], list[Tensor]]
    ) -> Callable[[Tensor], list[Tensor]]:
        """`pyramid` in the precision of the features; float32 out where the head is float32."""

        def run(images: Tensor) -> list[Tensor]:
            with self._autocast(self.features != "fp32"):
                levels = pyramid(images)
            if self.head == "fp32" and self.features != "fp32":
                return [level.float() for level in levels]
            return levels

        return run

    def for_head(self) -> AbstractContextManager[object]:
        """Context of everything after the features."""
        return self._autocast(self.head == "same" and self.features != "fp32")
