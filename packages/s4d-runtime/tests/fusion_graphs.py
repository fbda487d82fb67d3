"""Graphs whose operators can be fused, and graphs with what cannot be."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 32, 48


class Graph:
    """Collects nodes and weights of a test graph on half-precision pictures."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.type = TensorProto.FLOAT16  # of the results
        self.images: np.dtype = np.dtype(np.float16)  # of convolutions and what they read

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def conv(
        self, x: str, c: int, k: int, size: int = 1, stride: int = 1, bias: bool = True
    ) -> str:
        weight = self.rng.normal(0, (c * size * size) ** -0.5, (k, c, size, size))
        names = [self.constant(weight.astype(self.images))]
        if bias:
            names.append(self.constant(self.rng.normal(0, 0.2, k).astype(self.images)))
        pad = size // 2
        return self.add("Conv", x, *names, strides=[stride] * 2, pads=[pad] * 4)

    def layer(self, x: str, c: int, k: int, flags: str = "rn", swap: bool = False) -> str:
        """Linear, with a ReLU and a LayerNorm where the flags say so; single precision."""
        weight = self.rng.normal(0, c**-0.5, (c, k)).astype(np.float32)
        x = self.add("MatMul", x, self.constant(weight))
        terms = [x, self.constant(self.rng.normal(0, 0.2, k).astype(np.float32))]
        x = self.add("Add", *(terms[::-1] if swap else terms))
        if "r" in flags:
            x = self.add("Relu", x)
        if "n" in flags:
            gain, shift = self.rng.normal(1, 0.2, (2, k)).astype(np.float32)
            names = [self.constant(gain), self.constant(shift)]
            x = self.add("LayerNormalization", x, *names, axis=-1, epsilon=1e-5)
        return x

    def model(self, *outputs: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [2, HEIGHT, WIDTH, 3])],
            [helper.make_tensor_value_info(o, self.type, None) for o in outputs],
            self.weights,
        )
        opset = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()

    def pictures(self) -> str:
        """As s4d-export writes it."""
        x = self.add("Cast", "images", to=TensorProto.FLOAT)
        x = self.add("Unsqueeze", x, self.constant(np.array([0], np.int64)))
        x = self.add("Div", x, self.constant(np.array(255, np.float32)))
        x = self.add("Transpose", x, perm=[0, 1, 4, 2, 3])
        x = self.add("Reshape", x, self.constant(np.array([2, 3, HEIGHT, WIDTH], np.int64)))
        return x if self.images == np.float32 else self.add("Cast", x, to=TensorProto.FLOAT16)

    def plain_pictures(self) -> str:
        x = self.add("Cast", "images", to=helper.np_dtype_to_tensor_dtype(self.images))
        x = self.add("Div", x, self.constant(np.array(255, self.images)))
        return self.add("Transpose", x, perm=[0, 3, 1, 2])


def graph_of(single: bool) -> Graph:
    graph = Graph()
    if single:
        graph.type, graph.images = TensorProto.FLOAT, np.dtype(np.float32)
    return graph


def network(single: bool = False) -> bytes:
    """Stem, two residual blocks, a neck with two levels, flattened as the head reads them."""
    g = graph_of(single)
    x = g.add("Relu", g.conv(g.pictures(), 3, 16, 7, 2))
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    # A block with a convolution in the shortcut, and one without.
    y = g.conv(g.add("Relu", g.conv(x, 16, 8)), 8, 32, 3, bias=False)
    x = g.add("Relu", g.add("Add", y, g.conv(x, 16, 32)))
    fine = g.add("Relu", g.add("Add", x, g.conv(g.add("Relu", g.conv(x, 32, 8)), 8, 32)))
    coarse = g.add("Relu", g.conv(fine, 32, 64, 3, 2))
    fine, coarse = g.conv(fine, 32, 16), g.conv(coarse, 64, 16)
    target = g.constant(np.array([2, 16, HEIGHT // 4, WIDTH // 4], np.int64))
    nearest = {"mode": "nearest", "nearest_mode": "floor"}
    up = g.add(
        "Resize", coarse, "", "", target, coordinate_transformation_mode="asymmetric", **nearest
    )
    levels = []
    for level, cells in ((g.add("Add", fine, up), 96), (coarse, 24)):
        out = g.conv(level, 16, 16, 3)
        flat = g.add("Reshape", out, g.constant(np.array([2, 16, cells], np.int64)))
        levels.append(g.add("Transpose", flat, perm=[0, 2, 1]))
    return g.model(g.add("Concat", *levels, axis=1))


def awkward(single: bool = False) -> bytes:
    """What cannot join: other uses of a result, sums of other shapes, odd channels, groups."""
    g = graph_of(single)
    x = g.conv(g.plain_pictures(), 3, 16)
    both = g.add("Add", g.add("Relu", x), x)  # x is read twice
    twice = g.add("Add", x, x)
    scaled = g.add("Add", g.conv(both, 16, 16), g.constant(np.ones((1, 16, 1, 1), g.images)))
    odd = g.conv(scaled, 16, 12)
    after = g.conv(odd, 12, 16)
    joined = g.add("Concat", twice, after, axis=1)
    shown = g.conv(both, 16, 8)  # a result of the graph and an operand
    return g.model(g.add("Relu", shown), shown, g.add("Neg", joined))


def rows(g: Graph) -> str:
    """(1, 96, 12) numbers of the pictures."""
    x = g.add("Div", g.add("Cast", "images", to=TensorProto.FLOAT), g.constant(np.float32([99])))
    x = g.add("Reshape", x, g.constant(np.array([1, -1, 12], np.int64)))
    ends = [g.constant(np.array([n], np.int64)) for n in (0, 96, 1)]
    return g.add("Slice", x, *ends)


def cut(g: Graph, x: str, first: int, stop: int) -> str:
    return g.add("Slice", x, *(g.constant(np.array([n], np.int64)) for n in (first, stop, 2, 1)))


def linear() -> bytes:
    """Layers that no chain takes, with and without what may join them, and shared weights."""
    g = Graph()
    g.type = TensorProto.FLOAT
    x = rows(g)
    weights = [(12, 96), (96, 64), (64, 40), (40, 64), (64, 18), (64, 64)]
    w = [g.constant(g.rng.normal(0, a**-0.5, (a, b)).astype(np.float32)) for a, b in weights]
    bias = [g.constant(g.rng.normal(0, 0.2, b).astype(np.float32)) for _, b in weights]
    wide = g.add("MatMul", x, w[0])  # 12 inputs are too few
    a = g.add("MatMul", wide, w[1])
    both = g.add("Relu", g.add("Add", bias[1], a))
    twice = g.add("MatMul", both, w[5])
    other = g.add("Add", g.add("Relu", g.add("MatMul", twice, w[5])), twice)  # twice is read twice
    down = g.add("Add", g.add("MatMul", other, w[2]), bias[2])
    up = g.add("MatMul", down, w[3])
    summed = g.add("Add", up, both)  # no constant
    odd = g.add("Add", g.add("MatMul", summed, w[4]), bias[4])  # 18 outputs
    fixed = g.constant(g.rng.normal(0, 1, (1, 4, 64)).astype(np.float32))
    folded = g.add("MatMul", g.add("Relu", fixed), w[5])  # nothing but constants
    shown = g.add("MatMul", both, w[5])  # a result of the graph and an operand
    return g.model(odd, folded, shown, g.add("Add", shown, bias[5]))


def head() -> bytes:
    """An encoder of four branches, a refinement, and a chain that is read in the middle."""
    g = Graph()
    g.type = TensorProto.FLOAT
    x = rows(g)
    branches = []
    for first, stop, width in ((0, 3, 128), (3, 6, 32), (6, 8, 32), (8, 11, 64)):
        part = cut(g, x, first, stop)
        if first == 6:
            g.add("Neg", part)  # a slice with another use stays
        for inner in (stop - first, width, width):
            part = g.layer(part, inner, width, swap=first == 3)
        branches.append(part)
    code = g.add("Concat", *branches, axis=-1)
    code = g.layer(g.layer(code, 256, 256), 256, 128)
    read = g.add("Sigmoid", code)
    for number, flags in enumerate(("r", "rn", "r", "rn", "")):
        code = g.layer(code, 128, 11 if number == 4 else 128, flags)
    return g.model(code, read)


def awkward_head() -> bytes:
    """Layers that no chain may hold: half as wide again, of another epsilon, without a constant."""
    g = Graph()
    g.type = TensorProto.FLOAT
    x = rows(g)
    short = [g.layer(cut(g, x, 0, 3), 3, 8), g.layer(cut(g, x, 3, 6), 3, 8)]
    apart = g.add("Concat", *short, axis=1)  # put together along the rows
    wide = g.layer(g.layer(x, 12, 768), 768, 16)
    squared = g.add("MatMul", wide, g.add("Transpose", wide, perm=[0, 2, 1]))
    bias = g.constant(np.zeros((1, 96, 1), np.float32))
    odd = g.add("Add", g.add("MatMul", x, g.constant(np.eye(12, 16, dtype=np.float32))), bias)
    norm = [g.constant(np.ones(12, np.float32)), g.constant(np.zeros(12, np.float32))]
    normal = g.add("LayerNormalization", x, *norm, axis=-1, epsilon=1e-3)
    long = x
    for number in range(11):  # more layers than one step takes
        long = g.layer(long, 12, 12, "rn" if number % 2 else "")
    fixed = g.layer(g.constant(g.rng.normal(0, 1, (1, 4, 12)).astype(np.float32)), 12, 8)
    return g.model(apart, squared, g.add("Relu", odd), normal, long, fixed)


def single_network() -> bytes:
    return network(True)


def single_awkward() -> bytes:
    return awkward(True)
