"""Frames to come, for models that sample them: the next batches of each slot's sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from s4d_core import Observation, Sparse4D, Sparse4DConfig

from ..data.batch import Batch

__all__ = ["following", "lookahead", "observed", "windows"]

T = TypeVar("T")


def lookahead(model: Sparse4DConfig) -> int:
    """How many frames to come a model samples."""
    queue = model.queue
    return queue.length if queue is not None and queue.frames == "future" else 0


def windows(items: Iterable[T], length: int) -> Iterator[tuple[T, tuple[T, ...]]]:
    """Each item with the `length` items after it; near the end with those that there are."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > length:
            yield held.popleft(), tuple(held)
    while held:
        yield held.popleft(), tuple(held)


def following(seen: Sequence[tuple[Batch, Observation]]) -> list[Observation]:
    """Observations of the batches to come, marked where they do not belong to a slot's sequence.

    Where a slot begins another sequence on the way, or is padding, the rest is not present.
    """
    result: list[Observation] = []
    for batch, observation in seen:
        real = torch.tensor([token != "" for token in batch.tokens])
        present = ~batch.sequence_start & real.to(batch.sequence_start.device)
        if result and result[-1].present is not None:
            present = present & result[-1].present
        result.append(replace(observation, present=present))
    return result


@torch.no_grad()
def observed(
    model: Sparse4D,
    batches: Sequence[Batch],
    prepare: Callable[[Batch], Tensor],
    device: torch.device,
) -> list[Observation]:
    """Feature maps of the batches to come, without gradients, the nearest first."""
    seen = []
    for batch in batches:
        batch = batch.to(device, non_blocking=True)
        images = prepare(batch)
        seen.append(
            (batch, model.observe(images, batch.lidar2img, batch.timestamp, batch.lidar2global))
        )
    return following(seen)
