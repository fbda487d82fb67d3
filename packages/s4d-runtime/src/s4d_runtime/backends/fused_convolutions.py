"""A graph's half-precision convolutions, channels last, with what follows them in one step.

ONNX Runtime adds the bias of most half convolutions, the residual and the ReLU in kernels of their
own, and finds no tensor-core kernel for three input channels. Before it sees a graph, this puts
``s4d.fused::Convolution`` of s4d-ops in the place of Conv [+ Add] [+ Relu], and turns what lies
between (Resize, Add, Relu, Concat) to channels last too. The artifact stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .channels_last import ChannelsLastRewriter, Size
from .onnx_edit import EditableModel, Node

__all__ = ["ALIGN", "DOMAIN", "ConvolutionRewriter", "Plan", "fuse_convolutions"]

DOMAIN = "s4d.fused"
ALIGN = 8  # half values in 16 bytes: what a tensor-core kernel reads at once
HALF = 10  # ONNX's number of float16
PREPARE = {"Cast", "Unsqueeze", "Sub", "Div", "Mul", "Transpose", "Reshape"}  # of pictures


class Plan(NamedTuple):
    """A convolution before it is placed: inputs, attributes, size of the result."""

    inputs: list[str]
    numbers: dict[str, int]
    size: Size


def fuse_convolutions(graph: EditableModel) -> int:
    """Rewrite the graph in place; returns the number of convolutions."""
    rewriter = ConvolutionRewriter(graph)
    rewriter.run()
    return rewriter.fused


class ConvolutionRewriter(ChannelsLastRewriter):
    """Puts a fused operator in the place of each convolution and of what follows it."""

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float16)
    kinds: ClassVar[tuple[str, str]] = ("Convolution", "ConvolutionAdd")

    def __init__(self, graph: EditableModel) -> None:
        super().__init__(graph)
        self.waiting: dict[str, Plan] = {}  # result: a convolution whose sum comes later
        self.fused = 0

    def rules(self) -> dict[str, Callable[[Node], bool]]:
        return super().rules() | {"Conv": self._convolution, "Add": self._add}

    def _unturned(self, name: str, form: str) -> bool:
        """The pictures are channels last before the graph turns them: take them from there.

        That is, ``name`` = Cast(Reshape(Transpose(pictures))) to half, (N, C, H, W).
        """
        cast = self.producers.get(name)
        reshape = self.producers.get(cast.inputs[0]) if cast is not None else None
        if cast is None or reshape is None or name not in self.sizes:
            return False
        if cast.op_type != "Cast" or cast.attributes.get("to") != HALF:
            return False
        if not self._take_pictures(reshape, self.sizes[name], form, f"{form}.single"):
            return False
        self.nodes.append(Node("Cast", [f"{form}.single"], [form], {"to": HALF}))
        return True

    def _take_pictures(self, reshape: Node, size: Size, form: str, output: str) -> bool:
        """Make ``output``, (N, H, W, C), of what Reshape(Transpose(pictures)) turns, if it does."""
        turn = self.producers.get(reshape.inputs[0])
        n, h, w, c = size
        if (
            turn is None
            or (reshape.op_type, turn.op_type) != ("Reshape", "Transpose")
            or turn.attributes.get("perm") != [0, 1, 4, 2, 3]  # (1, N, H, W, C)
        ):
            return False
        shape = self.graph.array(reshape.inputs[1])
        if shape is None or shape.tolist() != [n, c, h, w]:
            return False
        sizes = self.graph.add(f"{form}.sizes", np.array([n, h, w, c], np.int64))
        self.nodes.append(Node("Reshape", [turn.inputs[0], sizes], [output]))
        return True

    def _convolution(self, node: Node) -> bool:
        plan = self._plan(node)
        if plan is None:
            return False
        add = self.consumers.only(node.outputs[0], "Add")
        if add is None:
            self._place(plan, node.outputs[0], None)
        else:  # it waits for the other operand
            self.waiting[node.outputs[0]] = plan
        return True

    def _plan(self, node: Node) -> Plan | None:
        """What the convolution needs; None where it must stay as it is."""
        weight = self.graph.initializers.get(node.inputs[1])
        a = node.attributes
        pads, strides = a.get("pads", [0] * 4), a.get("strides", [1, 1])
        if (
            weight is None
            or weight.dtype != self.dtype
            or len(weight.shape) != 4
            or not isinstance(pads, list)
            or not isinstance(strides, list)
            or pads[:2] != pads[2:]
            or a.get("group", 1) != 1
            or a.get("dilations", [1, 1]) != [1, 1]
            or a.get("auto_pad", "NOTSET") not in ("NOTSET", "")
        ):
            return None
        k, c, r, s = weight.shape
        source = node.inputs[0]
        pictures = self._picture_size(source) if c <= ALIGN else None
        if source not in self.sizes and pictures is not None:
            self.sizes[source] = pictures
        size = self.sizes.get(source)
        values = weight.array()
        bias = self.graph.array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(k, self.dtype)
        fits = k % ALIGN == 0 and (c % ALIGN == 0 or c < ALIGN)
        if size is None or values is None or bias is None or size.c != c or not fits:
            return None
        wide = np.zeros((k, r, s, max(c, ALIGN)), self.dtype)
        wide[..., :c] = values.transpose(0, 2, 3, 1)
        inputs = [self._aligned(source, c), *self._constants(node, wide, bias)]
        numbers = dict(stride_h=strides[0], stride_w=strides[1], pad_h=pads[0], pad_w=pads[1])
        result = size.windowed((r, s), strides, pads, k)
        return Plan(inputs, numbers | self._window(r, s), result)

    def _picture_size(self, name: str) -> Size | None:
        """Of what the first convolution reads: said by a Reshape, or that of the input ``images``.

        Up to there, only operators that change nothing about it.
        """
        while name != "images":
            node = self.producers.get(name)
            if node is None or node.domain != "" or node.op_type not in PREPARE:
                return None
            name = node.inputs[0]
            shape = self.graph.array(node.inputs[1]) if node.op_type == "Reshape" else None
            if shape is not None and shape.size == 4 and (shape > 0).all():
                n, c, h, w = (int(v) for v in shape)
                return Size(n, h, w, c)
        sizes = self.graph.input_shapes.get("images", ())
        return Size(*sizes) if len(sizes) == 4 and all(size > 0 for size in sizes) else None

    def _constants(self, node: Node, weight: NDArray[Any], bias: NDArray[Any]) -> list[str]:
        """The operator's constant inputs; weight (K, R, S, C)."""
        return [
            self.graph.add(f"{node.inputs[1]}.last", weight),
            self.graph.add(f"{node.outputs[0]}.bias", bias),  # biases may be shared
        ]

    def _window(self, height: int, width: int) -> dict[str, int]:
        """Attributes that say what the weight's shape does not."""
        return {}

    def _place(self, plan: Plan, output: str, residual: str | None) -> None:
        """Emit a convolution, with the ReLU that follows."""
        relu = self.consumers.only(output, "Relu")
        if relu is not None:
            output = relu.outputs[0]
            self.absorbed.add(relu)
        inputs = plan.inputs if residual is None else [*plan.inputs, self.last[residual]]
        kind = self.kinds[residual is not None]
        self._emit(kind, inputs, output, plan.size, **plan.numbers, relu=int(relu is not None))
        self.nodes[-1].domain = DOMAIN
        self.fused += 1

    def _add(self, node: Node) -> bool:
        """The sum joins the convolution that waits for it, if the other operand allows."""
        waiting = [name for name in node.inputs if name in self.waiting]
        for name in waiting[1:]:  # of two, the first in the sum takes the other as its residual
            self._place(self.waiting.pop(name), name, None)
        if waiting:
            plan = self.waiting.pop(waiting[0])
            other = next(name for name in node.inputs if name != waiting[0])
            if other in self.last and self.sizes.get(other) == plan.size:
                self._place(plan, node.outputs[0], other)
                return True
            self._place(plan, waiting[0], None)
        return self._elementwise(node)

    def _aligned(self, source: str, channels: int) -> str:
        """The channels-last form, with channels of zeros where there are too few."""
        name = self._to_last(source)
        if channels >= ALIGN:
            return name
        pads = np.array([0] * 7 + [ALIGN - channels], np.int64)
        wide = f"{source}.wide"
        self.nodes.append(Node("Pad", [name, self.graph.add(f"{source}.pads", pads)], [wide]))
        return wide
