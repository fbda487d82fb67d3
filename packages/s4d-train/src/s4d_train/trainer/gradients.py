"""Gradients averaged over the ranks after the backward pass, in a few messages.

DistributedDataParallel sends gradients while the backward pass runs, through hooks that a recorded
pass does not have. Sending the same messages from inside the recording was measured on four GPUs
of one host and gained nothing (docs/benchmarks.md), so they are sent here, after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25_000_000
"""Size of a message. R50's gradients are eight."""


@torch.no_grad()
def same_start(module: nn.Module) -> None:
    """Gives every rank the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


class GradientAverage:
    """Mean gradients over all ranks of the default process group.

    Args:
        parameters: those that are trained, in the same order on every rank.
        bucket_bytes: see `BUCKET_BYTES`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.parameters = list(parameters)
        self._flat: list[Tensor] = []
        self._slots: list[list[Tensor]] = []
        for group in _groups(self.parameters, bucket_bytes):
            flat, slots = _bucket(group)
            self._flat.append(flat)
            self._slots.append(slots)

    @torch.no_grad()
    def __call__(self) -> None:
        """Makes every `grad` the mean over the ranks; a missing one counts as zero.

        Afterwards gradients are views of the messages, in their parameters' memory layout.
        """
        gradients = iter([parameter.grad for parameter in self.parameters])
        works = []
        for flat, slots in zip(self._flat, self._slots, strict=True):
            pairs = [(slot, next(gradients)) for slot in slots]
            given = [(slot, gradient) for slot, gradient in pairs if gradient is not None]
            missing = [slot for slot, gradient in pairs if gradient is None]
            if missing:
                torch._foreach_zero_(missing)
            if given:
                torch._foreach_copy_([slot for slot, _ in given], [g for _, g in given])
            flat.div_(dist.get_world_size())
            works.append(dist.all_reduce(flat, async_op=True))
        for work in works:
            if work is not None:
                work.wait()
        slots = [slot for bucket in self._slots for slot in bucket]
        for parameter, slot in zip(self.parameters, slots, strict=True):
            parameter.grad = slot


def _groups(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Neighbours of one type, at least `size` bytes of them but in the last group of a type."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if room <= 0 or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            room = size
        groups[-1].append(parameter)
        room -= parameter.nbytes
    return groups


def _bucket(parameters: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """What is sent, and its views in shape and layout of the parameters."""
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    parts = flat.split([p.numel() for p in parameters])
    # A dense tensor's own strides, such as channels last, so that no gradient is laid out anew.
    slots = [
        part.as_strided(p.shape, p.stride(), part.storage_offset())
        for part, p in zip(parts, parameters, strict=True)
    ]
    return flat, slots
