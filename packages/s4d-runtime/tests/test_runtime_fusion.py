"""Graphs rewritten for fused operators compute what they computed before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from s4d_runtime.backends.fused_chains import DOMAIN
from s4d_runtime.backends.fusion import fuse_model
from s4d_runtime.backends.split_convolutions import split_weight
from s4d_runtime.errors import BackendError

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


def chain_nodes(node: onnx.NodeProto, parameters: np.ndarray) -> list[onnx.NodeProto]:
    """One ``DenseChains`` in ONNX's own operators, by the operator's own description."""
    nodes: list[onnx.NodeProto] = []
    a = {x.name: x for x in node.attribute}
    results: list[str] = []
    at = 0

    def take(*shape: int) -> str:
        nonlocal at
        size = int(np.prod(shape))
        name = f"{node.output[0]}.{at}"
        value = numpy_helper.from_array(parameters[at : at + size].reshape(shape), name)
        nodes.append(helper.make_node("Constant", [], [name], value=value))
        at += size
        return name

    def add(op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{node.output[0]}.{op}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    for text in a["branches"].s.decode().split(";"):
        first, width, *layers = text.split()
        numbers = []
        for value in (int(first), int(first) + int(width), -1):
            name = f"{node.output[0]}.int{len(nodes)}"
            array = numpy_helper.from_array(np.array([value], np.int64), name)
            nodes.append(helper.make_node("Constant", [], [name], value=array))
            numbers.append(name)
        x, columns = add("Slice", [node.input[0], *numbers]), int(width)
        for layer in layers:
            out = int(layer.rstrip("rn"))
            x = add("MatMul", [x, take(columns, out)])
            x = add("Add", [x, take(out)])
            x = add("Relu", [x]) if "r" in layer else x
            if "n" in layer:
                epsilon = a["epsilon"].f
                x = add("LayerNormalization", [x, take(out), take(out)], epsilon=epsilon)
            columns = out
            at += -at % 4
        results.append(x)
    assert at == parameters.size and a["rank"].i in (0, 3)
    nodes.append(helper.make_node("Concat", results, [node.output[0]], axis=-1))
    return nodes


def single_network() -> bytes:
    return network(True)


def single_awkward() -> bytes:
    return awkward(True)


def unsplit(parts: np.ndarray) -> np.ndarray:
    """(rows, depth) float64 of `split_weight`'s first result."""
    halves = parts.view(np.float16).reshape(len(parts), -1, 2, 8).astype(np.float64)
    return halves.sum(axis=2).reshape(len(parts), -1)


def split_nodes(
    node: onnx.NodeProto,
    weights: dict[str, np.ndarray],
    split: set[str],
    channels: dict[str, int],
) -> list[onnx.NodeProto]:
    """A ``Split...`` operator in ONNX's own ones, on tensors that are not split.

    ``split`` collects the tensors that would be; who reads which is checked. ``channels`` of
    tensors: the pictures have 3.
    """
    a = {x.name: x.i for x in node.attribute}
    o = node.output[0]
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    if node.op_type == "SplitValues":
        assert node.input[0] not in split
        split.add(o)
        channels[o] = -(-channels.get(node.input[0], 3) // 8) * 8
        # Zeros up to a multiple of 8 channels: size -c mod 8 after the last one.
        for i, value in enumerate(([8], [0], [0] * 7)):
            tensor = numpy_helper.from_array(np.array(value, np.int64), f"{o}.{i}")
            add("Constant", [], f"{o}.{i}", value=tensor)
        three = numpy_helper.from_array(np.array([3], np.int64), f"{o}.3")
        add("Constant", [], f"{o}.3", value=three)
        size = add("Gather", [add("Shape", [node.input[0]], f"{o}.size"), f"{o}.3"], f"{o}.c")
        more = add("Mod", [add("Neg", [size], f"{o}.n"), f"{o}.0"], f"{o}.more")
        pads = add("Concat", [f"{o}.2", more], f"{o}.pads", axis=0)
        add("Pad", [node.input[0], pads], o)
        return nodes
    if node.op_type == "SplitLinear":
        assert node.input[0] not in split
        finish = weights[node.input[2]].astype(np.float64)
        weight = (unsplit(weights[node.input[1]]) * finish[1][:, None]).T
        nonzero = np.flatnonzero(weight.any(axis=1))
        inner = -(-(nonzero[-1] + 1) // 8) * 8
        for name, array in (("w", weight[:inner]), ("b", finish[0])):
            tensor = numpy_helper.from_array(array.astype(np.float32), f"{o}.{name}")
            add("Constant", [], f"{o}.{name}", value=tensor)
        x = add("MatMul", [node.input[0], f"{o}.w"], f"{o}.m")
        x = add("Add", [x, f"{o}.b"], f"{o}.a")
        add("Relu" if a["relu"] else "Identity", [x], o)
        return nodes
    assert node.input[0] in split
    if a["split"]:
        split.add(o)
    window, strides = [a["kernel_h"], a["kernel_w"]], [a["stride_h"], a["stride_w"]]
    pads = [a["pad_h"], a["pad_w"]] * 2
    x = add("Transpose", [node.input[0]], f"{o}.x", perm=[0, 3, 1, 2])
    if node.op_type == "SplitMaxPool":
        x = add("MaxPool", [x], f"{o}.c", kernel_shape=window, strides=strides, pads=pads)
        add("Transpose", [x], o, perm=[0, 2, 3, 1])
        return nodes
    finish = weights[node.input[2]].astype(np.float64)
    rows = unsplit(weights[node.input[1]]) * finish[1][:, None]
    inner = channels[node.input[0]]
    used = rows[:, : inner * window[0] * window[1]]
    assert not rows[:, used.shape[1] :].any()
    weight = used.reshape(len(rows), *window, inner).transpose(0, 3, 1, 2)
    names = []
    for name, array in (("w", weight), ("b", finish[0])):
        tensor = numpy_helper.from_array(array.astype(np.float32), f"{o}.{name}")
        names.append(add("Constant", [], f"{o}.{name}", value=tensor))
    x = add("Conv", [x, *names], f"{o}.c", strides=strides, pads=pads)
    x = add("Transpose", [x], f"{o}.t", perm=[0, 2, 3, 1])
    if node.op_type == "SplitConvolutionAdd":
        assert a["split_residual"] == (node.input[3] in split)
        x = add("Add", [x, node.input[3]], f"{o}.s")
    add("Relu" if a["relu"] else "Identity", [x], o)
    return nodes


def plain(model: bytes) -> bytes:
    """The fused nodes written out in ONNX's own operators, to run anywhere."""
    proto = onnx.load_from_string(model)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    split: set[str] = set()
    channels = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in proto.graph.value_info}
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            if split.intersection(node.input):
                assert node.op_type == "Resize"  # copies values as they are
                split.add(node.output[0])
            nodes.append(node)
            continue
        if node.op_type.startswith("Split"):
            nodes += split_nodes(node, weights, split, channels)
            continue
        if node.op_type == "DenseChains":
            nodes += chain_nodes(node, weights[node.input[1]])
            continue
        a = {x.name: x.i for x in node.attribute}
        o = node.output[0]
        for i in (0, 1):
            turned = [f"{o}.{i}"]
            nodes.append(helper.make_node("Transpose", [node.input[i]], turned, perm=[0, 3, 1, 2]))
        strides, pads = [a["stride_h"], a["stride_w"]], [a["pad_h"], a["pad_w"]] * 2
        inputs = [f"{o}.0", f"{o}.1", node.input[2]]
        nodes.append(helper.make_node("Conv", inputs, [f"{o}.c"], strides=strides, pads=pads))
        nodes.append(helper.make_node("Transpose", [f"{o}.c"], [f"{o}.t"], perm=[0, 2, 3, 1]))
        last = f"{o}.t"
        if node.op_type == "ConvolutionAdd":
            nodes.append(helper.make_node("Add", [last, node.input[3]], [f"{o}.s"]))
            last = f"{o}.s"
        nodes.append(helper.make_node("Relu" if a["relu"] else "Identity", [last], [o]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()


def run(model: bytes) -> list[np.ndarray]:
    pictures = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})


@pytest.mark.parametrize(
    ("build", "fused", "sums"), ((network, 11, 3), (awkward, 3, 0)), ids=("network", "awkward")
)
def test_same_results(build: Callable[[], bytes], fused: int, sums: int) -> None:
    model = build()
    rewritten, count, chains, others, _ = fuse_model(model)
    assert chains == 0
    proto = onnx.load_from_string(rewritten)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert count == fused == kinds["Convolution"] + kinds["ConvolutionAdd"]
    assert others == kinds["Conv"]
    assert kinds["ConvolutionAdd"] == sums
    for got, expected in zip(run(plain(rewritten)), run(model), strict=True):
        np.testing.assert_allclose(got, expected, atol=4e-3)


@pytest.mark.parametrize(
    ("build", "fused", "sums", "splits", "pools"),
    ((single_network, 11, 3, 1, 1), (single_awkward, 3, 0, 2, 0)),
    ids=("network", "awkward"),
)
def test_same_results_in_split_products(
    build: Callable[[], bytes], fused: int, sums: int, splits: int, pools: int
) -> None:
    """Weights and layouts; tensors that are split are read only by what expects them."""
    model = build()
    rewritten, count, chains, others, _ = fuse_model(model, fp32x3=True)
    proto = onnx.load_from_string(rewritten)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert (chains, others, count) == (0, kinds["Conv"], fused)
    assert kinds["SplitConvolution"] + kinds["SplitConvolutionAdd"] == fused
    found = tuple(kinds[f"Split{kind}"] for kind in ("ConvolutionAdd", "Values", "MaxPool"))
    assert found == (sums, splits, pools)
    for got, expected in zip(run(plain(rewritten)), run(model), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_linear_layers_in_split_products() -> None:
    model = linear()
    fused = fuse_model(model, fp32x3=True)
    assert fused[1:] == (0, 0, 0, 6)
    nodes = onnx.load_from_string(fused.model).graph.node
    layers = [node for node in nodes if node.op_type == "SplitLinear"]
    assert [node.attribute[0].i for node in layers] == [1, 0, 1, 0, 0, 0]
    kinds = Counter(node.op_type for node in nodes)
    assert (kinds["MatMul"], kinds["Relu"], kinds["Add"]) == (3, 1, 4)
    for got, expected in zip(run(plain(fused.model)), run(model), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=5e-6)


def split(values: np.ndarray) -> np.ndarray:
    """High and low parts of activations as the kernel makes them, the low ones times 2^11."""
    high = values.astype(np.float16)
    return np.stack([high, ((values - high.astype(np.float32)) * 2048).astype(np.float16)])


@pytest.mark.parametrize("size", (1.0, 6e4 / 8, 1e-3, 1e-30), ids=str)
@pytest.mark.parametrize("scale", (1.0, 1e30, 1e-25, 3e-5), ids=str)
def test_split_products_are_as_good_as_single_precision(size: float, scale: float) -> None:
    """The kernel's arithmetic, step by step, against double precision and a float32 product.

    `size` of values (within half's range), `scale` of weights (any).
    """
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (64, 9 * 64)) * size).astype(np.float32)
    w = rng.normal(0, 1, (40, 3, 3, 64)) * scale * np.logspace(-3, 0, 40)[:, None, None, None]
    w = w.astype(np.float32)
    bias = (rng.normal(0, 1, 40) * size * scale).astype(np.float32)
    parts, finish = split_weight(w, bias)
    assert parts.shape == (40, 9 * 64) and parts.dtype == np.float32
    halves = parts.view(np.float16).reshape(40, -1, 2, 8).swapaxes(1, 2).reshape(40, 2, -1)
    assert np.isfinite(halves).all() and np.abs(halves[:, 0]).max() < 2**14
    high, low = (halves[:, i].astype(np.float64) for i in (0, 1))
    x_high, x_low = split(x).astype(np.float64)
    total = np.zeros((64, 40), np.float32)
    for step in range(0, 9 * 64, 32):
        at = slice(step, step + 32)
        small = (high[:, at].astype(np.float16) * np.float16(2**-11)).astype(np.float64)
        part = x_low[:, at] @ small.T + x_high[:, at] @ low[:, at].T + x_high[:, at] @ high[:, at].T
        total += part.astype(np.float32)
    got = total * finish[1] + finish[0]
    flat = w.reshape(40, -1).astype(np.float64)
    expected = x.astype(np.float64) @ flat.T + bias
    bound = np.abs(x).astype(np.float64) @ np.abs(flat).T + np.abs(bias)
    if size >= 2**-14:
        assert (np.abs(got - expected) / bound).max() < 2e-7
    else:  # below half's smallest normal number: 2^-36 for each value
        assert (np.abs(got - expected) <= 2e-7 * bound + 2.0**-36 * np.abs(flat).sum(1)).all()


def test_weights_that_are_nothing_or_not_finite() -> None:
    weight = np.zeros((8, 1, 1, 8), np.float32)
    weight[1] = np.float32(1e-45)
    weight[2] = np.float32(3e38)
    parts, finish = split_weight(weight, np.ones(8, np.float32))
    assert np.isfinite(finish).all() and (finish[1] > 0).all()
    np.testing.assert_allclose(
        unsplit(parts)[:, :8] * finish[1][:, None], weight[:, 0, 0], rtol=1e-6, atol=1e-44
    )


@pytest.mark.parametrize("single", (False, True))
def test_noted_sizes_are_those_of_the_tensors(single: bool) -> None:
    """In the graph of the GPU tests, which crops the pictures: an engine believes what is noted."""
    from runtime_fused import fused_onnx
    from runtime_tiny import tiny_manifest

    rewritten, convolutions, chains, others, _ = fuse_model(
        fused_onnx(tiny_manifest(), single), fp32x3=True
    )
    assert (convolutions, chains, others) == (11, 1, 0)
    proto = onnx.load_from_string(plain(rewritten))
    made = {name for node in proto.graph.node for name in node.output}
    noted = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.value_info
        if value.name in made
    }
    assert len(noted) > 10
    del proto.graph.value_info[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in noted)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    feed = {i.name: np.ones(i.shape, kinds[i.type]) for i in session.get_inputs()}
    for shape, array in zip(noted.values(), session.run([*noted], feed), strict=True):
        assert shape == list(array.shape)


def branches_of(model: bytes) -> list[str]:
    proto = onnx.load_from_string(model)
    nodes = [node for node in proto.graph.node if node.op_type == "DenseChains"]
    return [a.s.decode() for node in nodes for a in node.attribute if a.name == "branches"]


def test_chains_give_the_same() -> None:
    rewritten, convolutions, chains, *_ = fuse_model(head())
    assert (convolutions, chains) == (0, 6)
    assert branches_of(rewritten) == [
        "0 3 128rn 128rn 128rn;3 3 32rn 32rn 32rn;6 2 32rn 32rn 32rn;8 3 64rn 64rn 64rn",
        "0 256 256rn 128rn",
        "0 128 128r 128rn 128r 128rn 11",
    ]
    for got, expected in zip(run(plain(rewritten)), run(head()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_chain_stays() -> None:
    rewritten, _, chains, *_ = fuse_model(awkward_head())
    assert branches_of(rewritten) == [
        "0 3 8rn",
        "0 3 8rn",
        "0 12 12 12rn 12 12rn 12 12rn 12 12rn",
        "0 12 12 12rn 12",
    ]
    assert chains == 4
    for got, expected in zip(run(plain(rewritten)), run(awkward_head()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_network_stays_channels_last() -> None:
    """Turned round only around the pooling."""
    proto = onnx.load_from_string(fuse_model(network()).model)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["Transpose"] == 2 and kinds["Relu"] == 0 and kinds["Add"] == 0
    assert {tensor.name for tensor in proto.graph.initializer} <= {
        name for node in proto.graph.node for name in node.input
    }


def test_other_graphs_stay_as_they_are() -> None:
    """Single precision, inner graphs, no convolution."""
    g = Graph()
    single = onnx.load_from_string(g.model(g.conv(g.pictures(), 3, 8)))
    for tensor in single.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    inner = onnx.load_from_string(network())
    body = helper.make_graph([], "body", [], [])
    inner.graph.node.append(helper.make_node("If", ["c"], [], then_branch=body, else_branch=body))
    none = Graph()
    models = [
        single.SerializeToString(),
        inner.SerializeToString(),
        none.model(none.pictures()),
    ]
    for model in models:
        assert fuse_model(model) == (model, 0, 0, 0, 0)


def test_graphs_that_are_not_sound(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "s4d_runtime"):
        for model in (b"not a model", network()[:-100]):
            with pytest.raises(BackendError, match="could not be fused"):
                fuse_model(model)
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


@pytest.mark.parametrize(
    "build", (network, head, single_network, linear), ids=lambda build: build.__name__
)
def test_damaged_models_do_no_harm(build: Callable[[], bytes]) -> None:
    """Any damage gives a model for the engine to judge, or the error that leaves it to it."""

    def check(model: bytes) -> None:
        with suppress(BackendError):
            assert isinstance(fuse_model(model, fp32x3=True).model, bytes)

    rng = np.random.default_rng(0)
    model = build()
    # Weights aside, which are most of the bytes and where damage changes only numbers.
    places = np.flatnonzero(np.frombuffer(model, np.uint8) < 128)
    for _ in range(400):
        damaged = bytearray(model)
        for place in rng.choice(places, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.2:
            del damaged[rng.integers(len(damaged)) :]
        check(bytes(damaged))
    graph = onnx.load_from_string(model)
    for _ in range(200):
        changed = onnx.ModelProto()
        changed.CopyFrom(graph)
        node = changed.graph.node[rng.integers(len(graph.graph.node))]
        if rng.random() < 0.5:
            del node.input[rng.integers(len(node.input)) :]
        elif node.attribute:
            attribute = node.attribute[rng.integers(len(node.attribute))]
            attribute.ints[:] = rng.integers(-3, 3, rng.integers(0, 4)).tolist()
            attribute.i = 0
        else:
            tensor = changed.graph.initializer[rng.integers(len(graph.graph.initializer))]
            tensor.dims[:] = rng.integers(-1, 1 << 40, rng.integers(0, 5)).tolist()
        check(changed.SerializeToString())
