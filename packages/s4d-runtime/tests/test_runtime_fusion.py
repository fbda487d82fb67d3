"""Graphs rewritten for fused operators compute what they computed before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fusion_graphs import (
    HEIGHT,
    WIDTH,
    Graph,
    awkward,
    awkward_head,
    head,
    linear,
    network,
    single_awkward,
    single_network,
)
from fusion_written_out import plain, unsplit
from onnx import helper, numpy_helper
from runtime_fused import fused_onnx
from runtime_tiny import tiny_manifest

from s4d_runtime.backends.fusion import fuse_model
from s4d_runtime.backends.split_convolutions import split_weight
from s4d_runtime.errors import BackendError


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
    for step in range(0, 9 * 64, 16):  # what tensor cores add up
        at = slice(step, step + 16)
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
