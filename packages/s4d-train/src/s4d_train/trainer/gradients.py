"""Gradients averaged over the ranks while a recorded backward pass still runs.

DistributedDataParallel sends gradients from hooks that a replayed pass does not have. Here the
messages are part of the recording: while it is made, hooks of the parameters collect gradients in
buckets, and a bucket that is full is sent on the stream of the process group, beside the rest of
the pass. A pass that is not recorded sends the same messages in the same order at its end, so ranks
that replay and ranks that do not still meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25_000_000
"""A bucket is full when it holds this much. R50's gradients fill about eight."""


@torch.no_grad()
def same_start(module: nn.Module) -> None:
    """Gives every rank the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


@dataclass
class _Bucket:
    """Gradients that travel together.

    Attributes:
        flat: what is sent.
        slots: views of `flat`, one for each parameter, in its shape and memory layout.
        found: gradients that the pass has given so far, by place in the bucket.
    """

    flat: Tensor
    slots: list[Tensor]
    found: dict[int, Tensor] = field(default_factory=dict)

    def send(self) -> dist.Work | None:
        """Fills `flat` with what was found, zeros elsewhere, and starts its average."""
        missing = [slot for i, slot in enumerate(self.slots) if i not in self.found]
        if missing:
            torch._foreach_zero_(missing)
        if self.found:
            torch._foreach_copy_([self.slots[i] for i in self.found], list(self.found.values()))
        self.found = {}
        self.flat.div_(dist.get_world_size())
        return dist.all_reduce(self.flat, async_op=True)


class GradientAverage:
    """Mean gradients over all ranks of the default process group, in buckets.

    Args:
        parameters: those that are trained, in the same order on every rank.
        bucket_bytes: see `BUCKET_BYTES`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        # The backward pass reaches the last parameters first.
        self.parameters = list(parameters)[::-1]
        self._buckets = [_make_bucket(group) for group in _groups(self.parameters, bucket_bytes)]
        self._next = 0
        self._works: list[dist.Work | None] = []
        places = [(b, i) for b in self._buckets for i in range(len(b.slots))]
        for parameter, (bucket, i) in zip(self.parameters, places, strict=True):
            parameter.register_hook(partial(self._arrived, bucket, i))

    @torch.no_grad()
    def finish(self, sent: bool) -> None:
        """Makes every `grad` the mean over the ranks, after a backward pass.

        Args:
            sent: the pass was a replay, so messages were part of it. A gradient that is missing on
                a rank counts as zero there.
        """
        slots = [slot for bucket in self._buckets for slot in bucket.slots]
        if not sent:
            grads = iter([parameter.grad for parameter in self.parameters])
            for bucket in self._buckets:
                given = [next(grads) for _ in bucket.slots]
                bucket.found = {i: g for i, g in enumerate(given) if g is not None}
            self._send_rest()
        for parameter, slot in zip(self.parameters, slots, strict=True):
            parameter.grad = slot

    @torch.no_grad()
    def _arrived(self, bucket: _Bucket, place: int, gradient: Tensor) -> Tensor | None:
        """A parameter's gradient is complete; while a pass is recorded, its slot replaces it."""
        if not _recording(gradient):
            return None
        if not self._works and not any(b.found for b in self._buckets):
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(self._send_rest)
        bucket.found[place] = gradient
        # In their fixed order, whichever is full first: all ranks send alike.
        while self._next < len(self._buckets):
            first = self._buckets[self._next]
            if len(first.found) < len(first.slots):
                break
            self._works.append(first.send())
            self._next += 1
        return bucket.slots[place]

    @torch.no_grad()
    def _send_rest(self) -> None:
        """Sends the buckets that remain and lets the current stream wait for all."""
        for bucket in self._buckets[self._next :]:
            self._works.append(bucket.send())
        for work in self._works:
            if work is not None:
                work.wait()
        self._works, self._next = [], 0


def _recording(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


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


def _make_bucket(parameters: Sequence[nn.Parameter]) -> _Bucket:
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    parts = flat.split([p.numel() for p in parameters])
    # A dense tensor's own strides, such as channels last, so that no gradient is laid out anew.
    slots = [
        part.as_strided(p.shape, p.stride(), part.storage_offset())
        for part, p in zip(parts, parameters, strict=True)
    ]
    return _Bucket(flat, slots)
