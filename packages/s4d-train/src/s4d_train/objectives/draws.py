"""Random draws of the objectives, on the host, behind one small interface.

They come from one generator that belongs to the run: its state goes into the checkpoint, the device
is never asked, and tests can feed fixed numbers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """What denoising needs: uniform numbers and permutations."""

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uniform numbers in [0, 1), on the host."""
        ...

    def permutation(self, count: int) -> Tensor:
        """A random order of 0..count-1, int64, on the host."""
        ...


class GeneratorDraws:
    """Draws from a seeded `torch.Generator`."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=dtype)

    def permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues where `state_dict` was taken."""
        self.generator.set_state(state["generator"])
