"""From a graph to the steps that run: what is fused, and how every tensor is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LidarGraphError
from .nodes import AddNode, ConvNode, LidarGraph, Node, ReluNode, reads

__all__ = ["ConvStep", "Plan", "Step", "Storage", "make_plan", "weight_codes"]


@dataclass(frozen=True)
class Storage:
    """Element type of a stored tensor; ``range`` is the amax of an int8 one."""

    dtype: str  # "float32", "float16" or "int8"
    range: float = 0.0


@dataclass(frozen=True)
class ConvStep:
    """A convolution with what is fused into it: ``activation(conv + residual)``."""

    node: ConvNode
    target: str
    activation: str
    quantised: bool
    residual: str = ""
    sum_range: float = 0.0  # 0: the value is not rounded before the addition
    residual_range: float = 0.0


@dataclass(frozen=True)
class AddStep:
    """An addition that could not be fused (or a lone Relu, with ``right`` empty)."""

    name: str
    left: str
    right: str
    target: str
    activation: str
    left_range: float = 0.0
    right_range: float = 0.0


Step = ConvStep | AddStep | Node


@dataclass(frozen=True)
class Plan:
    """Steps in order, the storage of each sparse tensor, and what can be freed after each step."""

    steps: tuple[Step, ...]
    storage: dict[str, Storage]
    free_after: tuple[tuple[str, ...], ...]


def make_plan(graph: LidarGraph, precision: str, fuse: bool = True) -> Plan:
    """Choose steps and storage.

    Args:
        precision: "fp32", "fp16" (per-layer precision in the file is ignored) or "int8" (the
            file's per-layer precision holds).
        fuse: join Add and Relu to the convolution before them.

    Raises:
        LidarGraphError: int8 for a file without ranges.
    """
    if precision == "int8" and not graph.quantised:
        raise LidarGraphError("the file has no int8 layers; calibrate it, or use fp16")
    int8 = precision == "int8"
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    steps: list[Step] = []
    producer: dict[str, int] = {}

    def open_for(name: str, before: int) -> bool:
        """Whether the tensor is seen by nobody but the node that wants to absorb it."""
        return (
            fuse
            and name in producer
            and name not in graph.outputs
            and len(readers.get(name, [])) == 1
            and producer[name] < before
        )

    for node in graph.nodes:
        here = len(steps)
        if isinstance(node, ConvNode):
            quantised = int8 and node.precision == "int8"
            steps.append(ConvStep(node, node.target, node.activation, quantised))
        elif isinstance(node, AddNode):
            rounded = int8 and node.precision == "int8"
            ranges = (node.left_range, node.right_range) if rounded else (0.0, 0.0)
            index = _absorbing(steps, producer, node, open_for)
            if index is None:
                steps.append(
                    AddStep(node.name, node.left, node.right, node.target, "none", *ranges)
                )
            else:
                step = steps[index]
                assert isinstance(step, ConvStep)
                left = step.target == node.left
                own, other = ranges if left else ranges[::-1]
                steps[index] = replace(
                    step, target=node.target, residual=node.right if left else node.left,
                    sum_range=own, residual_range=other,
                )  # fmt: skip
                producer[node.target] = index
                continue
        elif isinstance(node, ReluNode):
            index = producer.get(node.source, -1)
            candidate = steps[index] if index >= 0 else None
            if (
                isinstance(candidate, (ConvStep, AddStep))
                and candidate.activation == "none"
                and open_for(node.source, here)
            ):
                steps[index] = replace(candidate, target=node.target, activation="relu")
                producer[node.target] = index
                continue
            steps.append(AddStep(node.name, node.source, "", node.target, "relu"))
        else:
            steps.append(node)
        producer[node.target] = here
    storage = _storage(graph, precision)
    return Plan(tuple(steps), storage, _free_after(graph, steps))


def _absorbing(
    steps: list[Step],
    producer: dict[str, int],
    node: AddNode,
    open_for: Callable[[str, int], bool],
) -> int | None:
    """The later one of the two convolutions that feed an addition, if it can take it over.

    The other operand must exist by then, hence the later one.
    """
    found = None
    for name, other in ((node.left, node.right), (node.right, node.left)):
        index = producer.get(name, -1)
        if index < 0 or name == other or not open_for(name, len(steps)):
            continue
        step = steps[index]
        plain = isinstance(step, ConvStep) and step.activation == "none" and not step.residual
        if plain and producer.get(other, -1) < index and (found is None or index > found):
            found = index
    return found


def _storage(graph: LidarGraph, precision: str) -> dict[str, Storage]:
    """int8 where the writer is marked so and an int8 reader says the range; else half or float.

    A tensor with two int8 readers is stored once, in the range of the convolution. The input and
    what is scattered to the dense map are half. Between layers that stay half, "int8" stores
    float32: a rounding there turns some of the first codes the other way, and int8 networks carry
    that all the way down.
    """
    base = Storage("float32" if precision == "fp32" else "float16")
    storage = {graph.source: base}
    precise: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node, (ConvNode, AddNode)):
            precise[node.target] = node.output_precision
        elif isinstance(node, ReluNode):
            precise[node.target] = precise.get(node.source, "fp16")
    for name, written in precise.items():
        storage[name] = base
        if precision == "int8" and _is_read_by_layers(graph, name):
            storage[name] = Storage("float32")
        if precision != "int8" or written != "int8" or name in graph.outputs:
            continue
        ranges = _reader_ranges(graph, name)
        if ranges:
            storage[name] = Storage("int8", ranges[0])
    return storage


def _is_read_by_layers(graph: LidarGraph, name: str) -> bool:
    layers = (ConvNode, AddNode, ReluNode)
    readers = [isinstance(node, layers) for node in graph.nodes if name in reads(node)]
    return bool(readers) and all(readers)


def _reader_ranges(graph: LidarGraph, name: str) -> list[float]:
    """Ranges in which int8 readers want the tensor; empty if any reader wants full precision."""
    convolutions, additions = [], []
    for node in graph.nodes:
        if name not in reads(node):
            continue
        if isinstance(node, ConvNode) and node.precision == "int8":
            convolutions.append(node.input_range)
        elif isinstance(node, AddNode) and node.precision == "int8":
            additions.append(node.left_range if node.left == name else node.right_range)
        else:
            return []
    return convolutions + additions


def _free_after(graph: LidarGraph, steps: list[Step]) -> tuple[tuple[str, ...], ...]:
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in step_reads(step):
            last[name] = index
    result: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in graph.outputs:
            result[index].append(name)
    return tuple(tuple(names) for names in result)


def step_reads(step: Step) -> tuple[str, ...]:
    """The tensors that a step reads."""
    if isinstance(step, ConvStep):
        return (step.node.source, *([step.residual] if step.residual else []))
    if isinstance(step, AddStep):
        return (step.left, *([step.right] if step.right else []))
    return reads(step)


def weight_codes(node: ConvNode) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """int8 codes of a layer's weights, and the range of each output channel (float64).

    A channel of zeros has range 0; any positive range stores it exactly.
    """
    ranges = np.array(node.weight_ranges, np.float64)
    ranges = np.where(ranges > 0, ranges, 1.0)
    scaled = node.weight.astype(np.float64) * (127.0 / ranges)[:, None, None, None, None]
    return np.clip(np.rint(scaled), -127, 127).astype(np.int8), ranges
