"""The network's forward and backward pass as CUDA graphs.

A step of this model is thousands of short kernels, and the host launches them more slowly than the
device runs them. Recorded once and replayed, they cost one launch. What is recorded is the network
alone: targets, assignment, losses and the optimiser run as before, so every setting of theirs
works. Inputs must keep their shapes; a batch with other ones (a first step, a batch without
objects) runs unrecorded. Recording draws no numbers and leaves running statistics as they were.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

STEPS_BEFORE = 3
"""Steps of one shape that run unrecorded first, so that libraries have chosen their kernels."""


def flatten(tree: Any, leaves: list[Tensor]) -> Any:
    """Appends the tensors in `tree` to `leaves`; returns what `rebuild` needs beside them.

    `tree` is made of dataclasses, lists, tuples and other values, which are kept as they are.
    """
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return _Leaf(len(leaves) - 1)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: flatten(getattr(tree, f.name), leaves) for f in dataclasses.fields(tree)}
        return _Node(type(tree), fields)
    if isinstance(tree, list | tuple):
        return type(tree)(flatten(part, leaves) for part in tree)
    return tree


def rebuild(skeleton: Any, leaves: list[Tensor]) -> Any:
    """The inverse of `flatten`."""
    if isinstance(skeleton, _Leaf):
        return leaves[skeleton.place]
    if isinstance(skeleton, _Node):
        return skeleton.kind(**{k: rebuild(v, leaves) for k, v in skeleton.fields.items()})
    if isinstance(skeleton, list | tuple):
        return type(skeleton)(rebuild(part, leaves) for part in skeleton)
    return skeleton


@dataclasses.dataclass(frozen=True)
class _Leaf:
    place: int


@dataclasses.dataclass(frozen=True)
class _Node:
    kind: type
    fields: dict[str, Any]


class GraphedModule(nn.Module):
    """A module whose calls are recorded, one recording for each set of input shapes.

    Args:
        inner: arguments and result may be any tree that `flatten` knows. No argument may need a
            gradient.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._seen: dict[Any, int] = {}
        self._recorded: dict[Any, Callable[[list[Tensor]], Any]] = {}

    def forward(self, *arguments: Any) -> Any:
        leaves: list[Tensor] = []
        skeleton = flatten(arguments, leaves)
        key = (repr(skeleton), tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._recorded:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= STEPS_BEFORE or not self.training:
                return self.inner(*arguments)
            self._recorded[key] = _record(self.inner, skeleton, leaves)
        return self._recorded[key](leaves)


class _Flat(nn.Module):
    """`inner` from tensors to tensors."""

    def __init__(self, inner: nn.Module, skeleton: Any) -> None:
        super().__init__()
        self.inner, self.skeleton = inner, skeleton
        self.result: Any = None
        self.differentiable: list[bool] = []

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        output = self.inner(*rebuild(self.skeleton, list(leaves)))
        found: list[Tensor] = []
        self.result = flatten(output, found)
        self.differentiable = [leaf.requires_grad for leaf in found]
        # An input that comes out as it is would be overwritten by the next call's input.
        return tuple(
            leaf.clone() if any(leaf is given for given in leaves) else leaf for leaf in found
        )


@contextmanager
def _own_calls_only(device: torch.device) -> Iterator[None]:
    """While it lasts, other threads may call CUDA beside a recording.

    The loader's thread pins memory and NCCL's asks for events at any time; torch records in a mode
    in which that breaks the recording, and does not let a caller choose another one.
    """
    if dist.is_available() and dist.is_initialized():
        # Collectives that still run would be asked for: let them end and be forgotten.
        torch.cuda.synchronize(device)
        time.sleep(0.5)
    plain = torch.cuda.graph
    torch.cuda.graph = partial(plain, capture_error_mode="thread_local")  # type: ignore
    try:
        yield
    finally:
        torch.cuda.graph = plain  # type: ignore[misc]


def _record(inner: nn.Module, skeleton: Any, leaves: list[Tensor]) -> Callable[[list[Tensor]], Any]:
    flat = _Flat(inner, skeleton)
    samples = tuple(leaf.detach().clone() for leaf in leaves)
    device = samples[0].device
    kept = [(buffer, buffer.clone()) for buffer in inner.buffers()]
    random = torch.cuda.get_rng_state(device)
    with _own_calls_only(device):
        graphed: Any = torch.cuda.make_graphed_callables(flat, samples, allow_unused_input=True)
    torch.cuda.set_rng_state(random, device)
    for buffer, value in kept:
        buffer.copy_(value)

    def replay(values: list[Tensor]) -> Any:
        outputs = graphed(*values)
        # Every float that leaves a graph looks differentiable; what was not must not become so.
        fixed = [
            leaf if grad else leaf.detach()
            for leaf, grad in zip(outputs, flat.differentiable, strict=True)
        ]
        return rebuild(flat.result, fixed)

    return replay
