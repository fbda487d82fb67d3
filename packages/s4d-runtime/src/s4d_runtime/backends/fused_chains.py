"""Chains of small single-precision layers, each chain in one step.

Anchor encoder and refinement are chains of MatMul, Add, Relu and LayerNormalization on some 900
rows: in R50 about 500 kernels, most shorter than their launch. ``s4d.fused::DenseChains`` takes a
row through a whole chain, and through several chains side by side where they read slices of one
tensor and their results are put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .consumers import Consumers
from .onnx_edit import Attribute, EditableModel, Node

__all__ = ["DOMAIN", "fuse_chains"]

DOMAIN = "s4d.fused"
ALIGN, WIDEST, LAYERS, BRANCHES = 4, 512, 8, 8  # what the kernel takes (s4d-ops, dense_chains.h)


@dataclass
class Layer:
    """Linear, and what follows it. ``name`` is made of those of its weights."""

    name: str
    weight: NDArray[Any]  # (in, out)
    bias: NDArray[Any]
    relu: bool
    norm: tuple[NDArray[Any], NDArray[Any]] | None  # gain, shift

    def text(self) -> str:
        flags = ("r" if self.relu else "") + ("n" if self.norm else "")
        return f"{self.weight.shape[1]}{flags}"

    def parameters(self) -> list[NDArray[Any]]:
        """In the kernel's order, with zeros up to a multiple of 16 bytes."""
        arrays = [self.weight.ravel(), self.bias, *(self.norm or ())]
        return [*arrays, np.zeros(-sum(a.size for a in arrays) % ALIGN, np.float32)]


@dataclass
class Chain:
    """Layers in a row: ``nodes`` from ``source`` to ``output``."""

    source: str
    output: str
    nodes: list[Node]
    layers: list[Layer]
    epsilon: float = 0.0

    def text(self, first: int) -> str:
        widths = " ".join(layer.text() for layer in self.layers)
        return f"{first} {self.layers[0].weight.shape[0]} {widths}"


def fuse_chains(graph: EditableModel) -> int:
    """Rewrite the graph in place; returns the number of chains."""
    finder = _Finder(graph)
    chains = finder.chains()
    replaced: dict[Node, Node] = {}  # a node: what stands in its place
    gone: set[Node] = set()
    single = dict(chains)
    for concat in graph.nodes:
        group = finder.group(concat, single)
        if group is None:
            continue
        parts, slices, source = group
        for part in parts:
            del single[part.output]
            gone.update(part.nodes)
        gone.update(s for s in slices if len(finder.consumers[s.outputs[0]]) == 1)
        firsts = [finder.first_column(node) for node in slices]
        text = ";".join(p.text(f) for p, f in zip(parts, firsts, strict=True))
        # The rank is not known here; the kernel sees whether the axis was the last one.
        rank = finder.axis(slices[0]) + 1
        replaced[concat] = _node(graph, source, concat.outputs[0], text, parts, rank)
    for chain in single.values():
        gone.update(chain.nodes)
        replaced[chain.nodes[0]] = _node(graph, chain.source, chain.output, chain.text(0), [chain])
    kept = []
    for node in graph.nodes:
        if node in replaced:
            kept.append(replaced[node])
        elif node not in gone:
            kept.append(node)
    graph.nodes = kept
    return len(chains)


def _node(
    graph: EditableModel, source: str, output: str, text: str, chains: list[Chain], rank: int = 0
) -> Node:
    layers = [layer for chain in chains for layer in chain.layers]
    name = "+".join(layer.name for layer in layers)  # once for chains that share their weights
    if name not in graph.initializers:
        arrays = [array for layer in layers for array in layer.parameters()]
        graph.add(name, np.concatenate(arrays).astype(np.float32))
    attributes: dict[str, Attribute] = {
        "branches": text,
        "epsilon": chains[0].epsilon,
        "rank": rank,
    }
    return Node("DenseChains", [source, name], [output], attributes, DOMAIN)


class _Finder:
    def __init__(self, graph: EditableModel) -> None:
        self.graph = graph
        self.consumers = Consumers(graph)
        self.producers = {name: node for node in graph.nodes for name in node.outputs}
        self.constants = {"", *graph.initializers}  # what ONNX Runtime computes once, by itself
        for node in graph.nodes:
            if all(name in self.constants for name in node.inputs):
                self.constants.update(node.outputs)

    def chains(self) -> dict[str, Chain]:
        """All chains with at least one normalisation, by their result."""
        found: dict[str, Chain] = {}
        used: set[Node] = set()
        for node in self.graph.nodes:
            if node.op_type != "MatMul" or node in used or node.inputs[0] in self.constants:
                continue
            chain = Chain(node.inputs[0], "", [], [])
            following: Node | None = node
            while following is not None and len(chain.layers) < LAYERS:
                if not self._extend(chain, following):
                    break
                following = self.consumers.only(chain.output, "MatMul")
                if following is not None and following.inputs[0] != chain.output:
                    break
            used.update(chain.nodes)
            if any(layer.norm for layer in chain.layers):
                found[chain.output] = chain
        return found

    def _vector(self, name: str, size: int) -> NDArray[Any] | None:
        array = self.graph.array(name)
        fits = array is not None and array.dtype == np.float32 and array.shape == (size,)
        return array if fits else None

    def _extend(self, chain: Chain, node: Node) -> bool:
        """Add the layer that begins with this MatMul; False where it is none."""
        weight = self.graph.array(node.inputs[1])
        if weight is None or weight.dtype != np.float32 or weight.ndim != 2:
            return False
        rows, columns = weight.shape
        if max(rows, columns) > WIDEST:
            return False
        add = self.consumers.only(node.outputs[0], "Add")
        if add is None:
            return False
        offset = next(name for name in add.inputs if name != node.outputs[0])
        bias = self._vector(offset, columns)
        if bias is None:
            return False
        layer = Layer(f"{node.inputs[1]},{offset}", weight, bias, False, None)
        nodes = [node, add]
        relu = self.consumers.only(add.outputs[0], "Relu")
        if relu is not None:
            layer.relu = True
            nodes.append(relu)
        norm = self.consumers.only(nodes[-1].outputs[0], "LayerNormalization")
        if norm is not None and norm.inputs[0] == nodes[-1].outputs[0]:
            gain, shift = (self._vector(name, columns) for name in [*norm.inputs[1:], "", ""][:2])
            epsilon = norm.attributes.get("epsilon", 1e-5)
            sound = isinstance(epsilon, float) and chain.epsilon in (0.0, epsilon)
            last = norm.attributes.get("axis", -1) == -1 and len(norm.outputs) == 1
            if gain is not None and shift is not None and sound and last:
                assert isinstance(epsilon, float)
                layer.norm, chain.epsilon = (gain, shift), epsilon
                layer.name += ",".join(("", *norm.inputs[1:]))
                nodes.append(norm)
        chain.layers.append(layer)
        chain.nodes += nodes
        chain.output = nodes[-1].outputs[0]
        return True

    def group(
        self, concat: Node, chains: dict[str, Chain]
    ) -> tuple[list[Chain], list[Node], str] | None:
        """Chains on slices of one tensor whose results this node puts together, in its order."""
        if concat.op_type != "Concat" or not 2 <= len(concat.inputs) <= BRANCHES:
            return None
        parts = [chains.get(name) for name in concat.inputs]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts) or len({part.epsilon for part in known}) != 1:
            return None
        if any(self.consumers.only(part.output, "Concat") is None for part in known):
            return None
        slices = [self.producers.get(part.source) for part in known]
        found = [s for s in slices if s is not None and self.first_column(s) >= 0]
        if len(found) != len(parts) or len({s.inputs[0] for s in found}) != 1:
            return None
        axes = {self.axis(s) for s in found}
        if len(axes) != 1 or concat.attributes.get("axis") not in (-1, *axes):
            return None
        for part, piece in zip(known, found, strict=True):
            stop = int(self.graph.array(piece.inputs[2])[0])  # type: ignore[index]
            if stop - self.first_column(piece) != part.layers[0].weight.shape[0]:
                return None
        return known, found, found[0].inputs[0]

    def axis(self, node: Node) -> int:
        """Of a Slice of one axis."""
        value = self.graph.array(node.inputs[3])
        assert value is not None
        return int(value[0])

    def first_column(self, node: Node) -> int:
        """Where a Slice of one axis begins; -1 where it is not so simple."""
        if node.op_type != "Slice" or len(node.inputs) < 4:
            return -1
        values = [self.graph.array(name) for name in node.inputs[1:]]
        if any(value is None or value.size != 1 for value in values):
            return -1
        numbers = [int(value[0]) for value in values if value is not None]
        return numbers[0] if len(numbers) == 3 or numbers[3] == 1 else -1
