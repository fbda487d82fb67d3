"""What each backbone is built from.

A configuration names its kind, so that a saved one can be read back: `kind` is the first field,
and a saved backbone without one is a ResNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import ConfigError

__all__ = ["BackboneConfig", "ResNetConfig"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network with four stages at strides 4, 8, 16 and 32.

    Attributes:
        block: "bottleneck" (output is 4 x width) or "basic" (output is width).
        layers: blocks per stage.
        widths: width of each stage's 3x3 convolutions.
        stem_channels: output of the 7x7 stem.
        frozen_stages: -1 none, 0 the stem, k the stem and stages 1..k: not trained, and their
            BatchNorm uses running statistics.
        norm_eval: BatchNorm uses running statistics in training too.
        checkpointing: recompute each block in backward instead of keeping its activations.
        style: where a bottleneck with a stride has it: "pytorch" in the 3x3 convolution, "caffe"
            in the first 1x1.
        deformable: stages whose 3x3 convolutions are deformable (bottlenecks only).
    """

    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_channels: int = 64
    frozen_stages: int = -1
    norm_eval: bool = False
    checkpointing: bool = False
    style: Literal["pytorch", "caffe"] = "pytorch"
    deformable: tuple[bool, bool, bool, bool] = (False, False, False, False)
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        _require(
            self.block == "bottleneck" or not any(self.deformable),
            "backbone.deformable: needs backbone.block 'bottleneck', got 'basic'",
        )
        _require(min(self.layers) >= 1, f"backbone.layers: at least 1 each, got {self.layers}")
        _require(min(self.widths) >= 1, f"backbone.widths: at least 1 each, got {self.widths}")
        _require(
            -1 <= self.frozen_stages <= 4,
            f"backbone.frozen_stages: expected -1..4, got {self.frozen_stages}",
        )

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the four outputs."""
        factor = 4 if self.block == "bottleneck" else 1
        return tuple(width * factor for width in self.widths)

    def level_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(height, width) of the four outputs: every halving rounds up."""
        height, width = image_size
        height, width = (height + 1) // 2, (width + 1) // 2  # the stem
        sizes = []
        for _ in self.layers:
            height, width = (height + 1) // 2, (width + 1) // 2
            sizes.append((height, width))
        return tuple(sizes)


BackboneConfig: TypeAlias = ResNetConfig
