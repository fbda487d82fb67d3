"""A graph's float32 convolutions on half-precision tensor cores, in float32's accuracy.

The rewriting of `fused_convolutions` with the operators ``s4d.fused::Split...`` of s4d-ops: a
float32 value is a high and a low half, a product the sum of three products of these ("fp32x3"). A
split tensor has the size of a float32 one, so tensors that only such operators read stay split
between them; ONNX Runtime moves them as float32 without looking at them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .consumers import Consumers
from .fused_convolutions import ALIGN, DOMAIN, ConvolutionRewriter
from .onnx_edit import EditableModel, Node

__all__ = ["split_convolutions", "split_weight"]

DEPTH = 32  # products of one step of the kernel
CONVOLUTIONS = ("SplitConvolution", "SplitConvolutionAdd")


def split_convolutions(graph: EditableModel) -> int:
    """Rewrite the graph in place; returns the number of convolutions."""
    rewriter = _SplitRewriter(graph)
    rewriter.run()
    if rewriter.fused:
        graph.shaped_type = np.dtype(np.float32)
        _split_tensors(graph)
    return rewriter.fused


def split_weight(
    weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What ``SplitConvolution`` reads of a convolution's weight and bias.

    Every output channel is scaled by a power of two that brings its largest weight between 2^13
    and 2^14, which fits half's range whatever the weights are.

    Args:
        weight: (K, R, S, C), C a multiple of 8.
        bias: (K,).

    Returns:
        (K, depth) of halves in pairs, not numbers: R S C values filled with zeros to a multiple of
        32, for every 8 of them 8 high and 8 low halves; and (2, K): bias, factor that undoes the
        scale.
    """
    channels = weight.shape[0]
    rows = np.asarray(weight, np.float32).reshape(channels, -1)
    depth = -(-rows.shape[1] // DEPTH) * DEPTH
    _, exponent = np.frexp(np.abs(rows).max(axis=1))
    shift = np.minimum(14 - exponent, 113)  # the factor must not leave float32's range
    scaled = np.zeros((channels, depth), np.float32)
    scaled[:, : rows.shape[1]] = np.ldexp(rows, shift[:, None])
    parts = np.empty((channels, depth // ALIGN, 2, ALIGN), np.float16)
    parts[:, :, 0] = scaled.reshape(channels, -1, ALIGN)
    parts[:, :, 1] = scaled.reshape(channels, -1, ALIGN) - parts[:, :, 0].astype(np.float32)
    finish = np.stack([bias, np.ldexp(np.float32(1), -shift)]).astype(np.float32)
    return parts.reshape(channels, -1).view(np.float32), finish


class _SplitRewriter(ConvolutionRewriter):
    dtype = np.dtype(np.float32)
    kinds = CONVOLUTIONS

    def _constants(self, node: Node, weight: NDArray[Any], bias: NDArray[Any]) -> list[str]:
        parts, finish = split_weight(weight, bias)
        return [
            self.graph.add(f"{node.inputs[1]}.split", parts),
            self.graph.add(f"{node.outputs[0]}.finish", finish),
        ]

    def _window(self, height: int, width: int) -> dict[str, int]:
        return {"kernel_h": height, "kernel_w": width}

    def _aligned(self, source: str, channels: int) -> str:
        return self._to_last(source)  # splitting adds the channels

    def _unturned(self, name: str, form: str) -> bool:
        """``name`` = Reshape(Transpose(pictures)), (N, C, H, W)."""
        reshape = self.producers.get(name)
        if reshape is None or name not in self.sizes:
            return False
        return self._take_pictures(reshape, self.sizes[name], form, form)

    def _max_pool(self, node: Node) -> bool:
        source = node.inputs[0]
        size = self.sizes.get(source)
        a = node.attributes
        kernel, pads = a.get("kernel_shape"), a.get("pads", [0] * 4)
        strides = a.get("strides", [1, 1])
        if (
            size is None
            or source not in self.last
            or len(node.outputs) != 1
            or not (isinstance(kernel, list) and isinstance(strides, list))
            or not (isinstance(pads, list) and pads[:2] == pads[2:])
            or a.get("ceil_mode", 0)
            or a.get("dilations", [1, 1]) != [1, 1]
            or a.get("auto_pad", "NOTSET") not in ("NOTSET", "")
            or size.c % ALIGN
        ):
            return super()._max_pool(node)
        self._emit(
            "SplitMaxPool",
            [self.last[source]],
            node.outputs[0],
            size.windowed(kernel, strides, pads, size.c),
            stride_h=strides[0],
            stride_w=strides[1],
            pad_h=pads[0],
            pad_w=pads[1],
            **self._window(kernel[0], kernel[1]),
        )
        self.nodes[-1].domain = DOMAIN
        return True


def _split_tensors(graph: EditableModel) -> None:
    """Decide which tensors are split, tell their producers, and split the others where needed."""
    consumers = Consumers(graph)

    def only_split_readers(name: str) -> bool:
        return name not in graph.outputs and all(
            (_is_split(node) and (name == node.inputs[0] or name in node.inputs[3:]))
            or (_moves(node) and name == node.inputs[0] and only_split_readers(node.outputs[0]))
            for node in consumers.get(name, [])
        )

    split: set[str] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        output = node.outputs[0] if node.outputs else ""
        if _moves(node) and node.inputs[0] in split:
            split.add(output)
        elif _is_split(node):
            source = node.inputs[0]
            if source not in split:
                form = f"{source}.parts"
                if form not in split:
                    nodes.append(Node("SplitValues", [source], [form], {}, DOMAIN))
                    split.add(form)
                node.inputs[0] = form
            node.attributes["split"] = int(only_split_readers(output))
            if node.attributes["split"]:
                split.add(output)
            if node.op_type == "SplitConvolutionAdd":
                node.attributes["split_residual"] = int(node.inputs[3] in split)
        nodes.append(node)
    graph.nodes = nodes


def _is_split(node: Node) -> bool:
    """Reads a split tensor and makes one, or not."""
    return node.domain == DOMAIN and node.op_type in (*CONVOLUTIONS, "SplitMaxPool")


def _moves(node: Node) -> bool:
    """Copies channels-last pixels as they are."""
    return node.domain == "" and node.op_type == "Resize" and node.outputs[0].endswith(".last")
