"""Frames to come, for models that sample them: the next batches of each slot's sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from s4d_core import Observation, Sparse4D

from ..data.batch import Batch

__all__ = ["observed", "windows"]


def windows(batches: Iterator[Batch], length: int) -> Iterator[tuple[Batch, tuple[Batch, ...]]]:
    """Each batch with the `length` batches after it."""
    held: deque[Batch] = deque()
    for batch in batches:
        held.append(batch)
        if len(held) > length:
            first, *others = held
            held.popleft()
            yield first, tuple(others)


@torch.no_grad()
def observed(
    model: Sparse4D,
    following: Sequence[Batch],
    prepare: Callable[[Batch], Tensor],
    device: torch.device,
) -> list[Observation]:
    """Feature maps of the batches to come, without gradients, the nearest first.

    Where a slot begins another sequence on the way, the rest is marked as not present.
    """
    seen: list[Observation] = []
    for batch in following:
        batch = batch.to(device, non_blocking=True)
        present = ~batch.sequence_start
        if seen and seen[-1].present is not None:
            present = present & seen[-1].present
        found = model.observe(prepare(batch), batch.lidar2img, batch.timestamp, batch.lidar2global)
        seen.append(replace(found, present=present))
    return seen
