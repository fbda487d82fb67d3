"""Graphs turned to channels last between the operators that work so.

A rewriter goes through the nodes in order. What lies between convolutions (Resize, Concat, Add,
Relu, the flattening at the end) works on either layout; where its operands exist channels last, its
result does too, and a Transpose stands only where another node reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .consumers import Consumers
from .onnx_edit import Attribute, EditableModel, Node

__all__ = ["ChannelsLastRewriter", "Size"]

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Size(NamedTuple):
    """Sizes of a tensor, whatever its layout."""

    n: int
    h: int
    w: int
    c: int

    def windowed(
        self, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], channels: int
    ) -> Size:
        """What a window of this many rows and columns makes; pads: top, left, bottom, right."""
        h = (self.h + pads[0] + pads[2] - kernel[0]) // strides[0] + 1
        w = (self.w + pads[1] + pads[3] - kernel[1]) // strides[1] + 1
        return Size(self.n, h, w, channels)


class ChannelsLastRewriter:
    """Goes through the nodes in order and builds the new list.

    A subclass says where channels-last tensors come from: it adds rules, which return whether they
    have dealt with a node.
    """

    def __init__(self, graph: EditableModel) -> None:
        self.graph = graph
        self.consumers = Consumers(graph)
        self.producers = {name: node for node in graph.nodes for name in node.outputs}
        self.nodes: list[Node] = []
        self.absorbed: set[Node] = set()
        self.sizes: dict[str, Size] = {}
        self.last: dict[str, str] = {}  # tensor: its channels-last form
        self.first: set[str] = set()  # of those, the ones that also exist channels first

    def rules(self) -> dict[str, Callable[[Node], bool]]:
        """By ONNX operator."""
        return {
            "MaxPool": self._max_pool,
            "Resize": self._resize,
            "Concat": self._concat,
            "Add": self._elementwise,
            "Relu": self._elementwise,
            "Reshape": self._flatten,
        }

    def run(self) -> None:
        rules = self.rules()
        for node in self.graph.nodes:
            if node in self.absorbed:
                continue
            rule = rules.get(node.op_type) if node.domain == "" else None
            if rule is not None and rule(node):
                continue
            for name in node.inputs:
                self._to_first(name)
            self.nodes.append(node)
        for name in sorted(self.graph.outputs):  # the same graph every time
            self._to_first(name)
        self.graph.nodes = self.nodes

    def _emit(
        self, op_type: str, inputs: list[str], output: str, size: Size, **attributes: Attribute
    ) -> None:
        """A node whose result is the channels-last form of ``output``."""
        name = f"{output}.last"
        self.nodes.append(Node(op_type, inputs, [name], dict(attributes)))
        self.last[output] = name
        self.sizes[output] = size
        self.graph.shapes[name] = size

    def _to_first(self, name: str) -> None:
        if name in self.last and name not in self.first and self.last[name] == f"{name}.last":
            self.nodes.append(Node("Transpose", [self.last[name]], [name], {"perm": TO_FIRST}))
            self.first.add(name)

    def _to_last(self, name: str) -> str:
        if name not in self.last:
            form = f"{name}.turned"
            if not self._unturned(name, form):
                self.nodes.append(Node("Transpose", [name], [form], {"perm": TO_LAST}))
            self.last[name] = form
        return self.last[name]

    def _unturned(self, name: str, form: str) -> bool:
        """Make ``form``, the channels-last form, of what the graph turned itself, if it did."""
        return False

    def _max_pool(self, node: Node) -> bool:
        """Left to ONNX Runtime, which turns it itself once it knows the shape."""
        size = self.sizes.get(node.inputs[0])
        a = node.attributes
        kernel, strides, pads = (a.get(n) for n in ("kernel_shape", "strides", "pads"))
        if size is None or a.get("ceil_mode", 0) or a.get("dilations", [1, 1]) != [1, 1]:
            return False
        if not (isinstance(kernel, list) and isinstance(strides, list)):
            return False
        edge = pads if isinstance(pads, list) else [0] * 4
        self.sizes[node.outputs[0]] = size.windowed(kernel, strides, edge, size.c)
        return False

    def _resize(self, node: Node) -> bool:
        """Nearest pixels, to constant sizes."""
        size = self.sizes.get(node.inputs[0])
        target = self.graph.array(node.inputs[3]) if len(node.inputs) == 4 else None
        if node.inputs[0] not in self.last or size is None or target is None or target.size != 4:
            return False
        if node.attributes.get("mode") != "nearest" or any(node.inputs[1:3]):
            return False
        n, c, h, w = (int(v) for v in target)
        sizes = self.graph.add(f"{node.outputs[0]}.sizes", np.array([n, h, w, c], np.int64))
        rounding = ("mode", "nearest_mode", "coordinate_transformation_mode")
        self._emit(
            "Resize",
            [self.last[node.inputs[0]], "", "", sizes],
            node.outputs[0],
            Size(n, h, w, c),
            **{name: node.attributes[name] for name in rounding if name in node.attributes},
        )
        return True

    def _concat(self, node: Node) -> bool:
        sizes = [self.sizes.get(name) for name in node.inputs]
        if node.attributes.get("axis") != 1 or any(name not in self.last for name in node.inputs):
            return False
        known = [size for size in sizes if size is not None]
        if len(known) != len(sizes):
            return False
        total = known[0]._replace(c=sum(size.c for size in known))
        inputs = [self.last[name] for name in node.inputs]
        self._emit("Concat", inputs, node.outputs[0], total, axis=3)
        return True

    def _elementwise(self, node: Node) -> bool:
        """Add and Relu."""
        sizes = {self.sizes.get(name) for name in node.inputs}
        size = sizes.pop()
        if sizes or size is None or any(name not in self.last for name in node.inputs):
            return False
        inputs = [self.last[name] for name in node.inputs]
        self._emit(node.op_type, inputs, node.outputs[0], size)
        return True

    def _flatten(self, node: Node) -> bool:
        """Reshape to (n, c, pixels) and Transpose to (n, pixels, c): channels last, one Reshape."""
        source = node.inputs[0]
        size = self.sizes.get(source)
        turn = self.consumers.only(node.outputs[0], "Transpose")
        shape = self.graph.array(node.inputs[1])
        if source not in self.last or size is None or turn is None or shape is None:
            return False
        n, h, w, c = size
        if shape.tolist() != [n, c, h * w] or turn.attributes.get("perm") != [0, 2, 1]:
            return False
        flat = self.graph.add(f"{turn.outputs[0]}.shape", np.array([n, h * w, c], np.int64))
        self.nodes.append(Node("Reshape", [self.last[source], flat], [turn.outputs[0]]))
        self.absorbed.add(turn)
        return True
