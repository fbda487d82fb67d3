"""The nodes of a LiDAR graph, checked, in the order they run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AddNode", "ConvNode", "LidarGraph", "Node", "ReluNode", "ReshapeNode", "ScatterNode",
           "TransposeNode", "Triple", "reads"]  # fmt: skip

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ConvNode:
    """SparseConvolution. ``weight`` (out, k0, k1, k2, in) and ``bias`` (out,) as in the file.

    ``input_range`` and ``weight_ranges`` (amax) are there on int8 layers.
    """

    name: str
    source: str
    target: str
    weight: NDArray[np.floating]
    bias: NDArray[np.floating]
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    grid_shape: Triple
    kind: str  # "subm", "strided" or "inverse"
    rulebook: str
    activation: str
    precision: str
    output_precision: str
    input_range: float
    weight_ranges: tuple[float, ...]


@dataclass(frozen=True)
class AddNode:
    """Add or QuantAdd of two tensors on the same sites; ranges are 0 where the file has none."""

    name: str
    left: str
    right: str
    target: str
    left_range: float
    right_range: float
    precision: str
    output_precision: str


@dataclass(frozen=True)
class ReluNode:
    name: str
    source: str
    target: str


@dataclass(frozen=True)
class ScatterNode:
    """Rows to (N, C, grid). ``format`` is the order of the grid's axes, "zyx" or "xyz"."""

    name: str
    source: str
    target: str
    format: str


@dataclass(frozen=True)
class TransposeNode:
    name: str
    source: str
    target: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class ReshapeNode:
    name: str
    source: str
    target: str
    shape: tuple[int, ...]


Node = ConvNode | AddNode | ReluNode | ScatterNode | TransposeNode | ReshapeNode


@dataclass(frozen=True)
class LidarGraph:
    """A checked graph. ``source`` is the name of the sparse input, ``outputs`` what it returns."""

    nodes: tuple[Node, ...]
    source: str
    outputs: tuple[str, ...]
    grid_shape: Triple
    in_channels: int
    metadata: dict[str, str]

    @property
    def quantised(self) -> bool:
        """Whether any convolution is marked int8."""
        return any(isinstance(n, ConvNode) and n.precision == "int8" for n in self.nodes)


def reads(node: Node) -> tuple[str, ...]:
    """The tensors that a node reads."""
    return (node.left, node.right) if isinstance(node, AddNode) else (node.source,)
