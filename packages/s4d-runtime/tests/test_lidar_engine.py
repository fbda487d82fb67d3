"""The sparse engine on the example file: fp32, fp16, int8, against the golden data."""

import numpy as np
import pytest
from golden_lidar import golden
from lidar_reference import calibrated_example, emulate, example_path, fake_quant

from s4d_runtime.errors import BackendUnavailableError, FrameError
from s4d_runtime.lidar import LidarGraphError, SparseEngine, SparseRows
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx
from s4d_runtime.lidar.plan import ConvStep


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def example():
    data = golden("example_scn_small_fp16.npz")
    return data, data["in/feat_fp16"], data["in/idx"], tuple(int(n) for n in data["in/grid"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "auto"])
def test_example_file(example, precision):
    data, features, indices, grid = example
    engine = SparseEngine.load(example_path(), precision)
    assert engine.precision == ("fp16" if precision == "auto" else precision)
    dense = engine(features, indices, grid)
    assert dense.dtype == (np.float32 if precision == "fp32" else np.float16)
    want = data["fp16/dense"]
    limit = 1e-5 if precision == "fp32" else 2e-3
    assert relative(dense.astype(np.float64), want) <= limit
    assert np.abs(dense - want).max() <= 3e-3 * np.abs(want).max()
    # Everything is fused: 21 convolutions, the scatter and the reshape.
    assert len(engine.plan.steps) == 23
    np.testing.assert_array_equal(dense, engine(features, indices))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_example_every_tensor(example, precision, limit):
    data, features, indices, grid = example
    tensors = SparseEngine.load(example_path(), precision).trace(features, indices, grid)
    order = np.lexsort(indices.T[::-1])
    stages = {842: "stage1", 1060: "stage2", 504: "stage3", 161: "stage4"}
    for name in [n for n in data.files if n.startswith("fp16/tensor/")]:
        rows = tensors[name.removeprefix("fp16/tensor/")]
        order = np.lexsort(rows.indices.T[::-1])
        np.testing.assert_array_equal(rows.indices[order], data[f"idx/{stages[len(order)]}"])
        got, want = rows.values()[order].astype(np.float64), data[name]
        assert relative(got, want) <= limit, name
        assert np.abs(got - want).max() <= 3e-3 * np.abs(want).max(), name
    for name in [n for n in data.files if n.startswith("fp16/checksum/")]:
        got = tensors[name.removeprefix("fp16/checksum/")].values().astype(np.float64)
        want = data[name]
        assert got.size == want[0]
        np.testing.assert_allclose(np.abs(got).sum(), want[2], rtol=limit)
        np.testing.assert_allclose((got**2).sum(), want[3], rtol=2 * limit)


def run_int8(example, change):
    _, features, indices, grid = example
    source = calibrated_example(features, indices, grid)
    for node in source.nodes:
        change(node.attributes)
    graph = build_graph(source)
    engine = SparseEngine(graph)
    assert engine.precision == "int8"
    name = graph.outputs[0]
    y = engine(features, indices, grid).astype(np.float64).ravel()
    emulation = emulate(source, features, indices, grid, int8=True)[0][name].ravel()
    half = emulate(source, features, indices, grid, int8=False)[0][name].ravel()
    a, b = y - half, emulation - half
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return engine, relative(y, emulation), relative(half, emulation), cosine


def clip(attributes):
    """Ranges below the maximum, as a calibration that weighs clipping against rounding gives."""
    for name in ("input_dynamic_range", "input0_dynamic_range", "input1_dynamic_range"):
        if name in attributes:
            attributes[name] *= 0.7


def everything_int8(attributes):
    for name in ("precision", "output_precision"):
        if name in attributes:
            attributes[name] = "int8"


def test_int8_end_to_end(example):
    """The golden README's fair check, both parts: close to the emulation, and the difference from
    half precision is the one that int8 makes."""
    for change, at_least in (
        (clip, 0.05),
        (lambda attributes: None, 0.02),
        (everything_int8, 0.02),
    ):
        _, error, effect, cosine = run_int8(example, change)
        assert error <= 0.035 and cosine >= 0.85  # the golden limits
        assert error <= 1e-3 and cosine >= 0.999  # and what is reached
        assert effect >= at_least  # int8 does something here


def test_why_tensors_between_half_layers_are_float32(example, monkeypatch):
    """Stored as half they would be rounded before the first codes. That moves the result by 2.1 %
    here, as much as int8 itself does with ranges at the maximum (2.6 %), and misses the cosine of
    the golden check; so does the emulation itself, given an input moved by less than half an ulp
    of half precision."""
    from s4d_runtime.lidar import plan

    monkeypatch.setattr(plan, "_is_read_by_layers", lambda *_: False)
    engine, error, effect, cosine = run_int8(example, clip)
    assert error <= 0.035 and cosine >= 0.85 and effect >= 0.05
    # Tensors between int8 layers are stored as int8.
    stored = [engine.plan.storage[s.target].dtype for s in engine.plan.steps[:21]]
    assert stored == ["float16"] * 2 + ["int8"] * 18 + ["float16"]
    assert engine.weight_bytes < 0.5 * SparseEngine(engine.graph, "fp16").weight_bytes
    _, error, effect, cosine = run_int8(example, lambda attributes: None)
    assert error <= 0.035 and effect <= 0.035 and 0.5 < cosine < 0.85

    _, features, indices, grid = example
    source = calibrated_example(features, indices, grid)
    rng = np.random.default_rng(0)
    moved = features.astype(np.float64) * (1 + rng.uniform(-1, 1, features.shape) * 2.0**-11)
    name = source.outputs[0]
    first, second = (
        emulate(source, x, indices, grid, int8=True)[0][name].ravel() for x in (features, moved)
    )
    half = emulate(source, features, indices, grid, int8=False)[0][name].ravel()
    a, b = second - half, first - half
    assert 0.01 < relative(second, first) < 0.035
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) < 0.85


def test_int8_layer_by_layer(example):
    """Each fused layer, fed the engine's own inputs, is right to 1e-5 before it is stored."""
    _, features, indices, grid = example
    source = calibrated_example(features, indices, grid)
    graph = build_graph(source)
    engine = SparseEngine(graph, "int8")
    tensors = engine.trace(features, indices, grid, fused=True)
    checked = 0
    for step in engine.plan.steps:
        if not isinstance(step, ConvStep) or not step.quantised:
            continue
        node = step.node
        given: SparseRows = tensors[node.source]
        got: SparseRows = tensors[step.target]
        x = given.values().astype(np.float64)
        if given.storage.dtype != "int8":
            x = fake_quant(x, node.input_range)
        ranges = np.array(node.weight_ranges)[:, None, None, None, None]
        weight = fake_quant(node.weight.astype(np.float64), ranges)
        table = _table(node, given, got)
        y = table(x, weight) + node.bias.astype(np.float64)
        if step.residual:
            other: SparseRows = tensors[step.residual]
            right = other.values().astype(np.float64)
            if other.storage.dtype != "int8":
                right = fake_quant(right, step.residual_range)
            y = fake_quant(y, step.sum_range) + right
        if step.activation == "relu":
            y = np.maximum(y, 0)
        if got.storage.dtype == "int8":
            codes = np.clip(np.rint(y * (127 / got.storage.range)), -127, 127)
            flips = np.abs(codes - got.features)
            # Sums near a rounding edge may fall on either side; everything else is exact.
            assert (flips > 0).mean() <= 1e-3 and flips.max() <= 3, node.name
        else:
            assert np.abs(got.values() - y).max() <= 1e-3 * np.abs(y).max(), node.name
        checked += 1
    assert checked == 18


def _table(node, given, got):
    from lidar_reference import gather_convolution

    from s4d_ops import sparse

    if node.kind == "subm":
        book = sparse.submanifold_rulebook(given.indices, given.grid_shape, 1, node.kernel)
    else:
        book = sparse.strided_rulebook(
            given.indices, given.grid_shape, 1, node.kernel, node.stride, node.padding
        )
        np.testing.assert_array_equal(book.out_indices, got.indices)
    return lambda x, weight: gather_convolution(x, weight, book.table)


def test_batch_and_other_grid(example):
    """Samples of a batch do not see each other; a larger grid works without a new file."""
    _, features, indices, grid = example
    engine = SparseEngine.load(example_path(), "fp32")
    alone = engine(features, indices, grid)
    second = indices + np.array([1, 0, 0, 0], np.int32)
    both = engine(np.concatenate([features, features]), np.concatenate([second, indices]), grid, 2)
    np.testing.assert_array_equal(both[0], alone[0])
    np.testing.assert_array_equal(both[1], alone[0])
    larger = engine(features, indices, (41, 88, 72))
    assert larger.shape == (1, 64, 11, 9)
    tensors, _ = emulate(read_onnx(example_path()), features, indices, (41, 88, 72), int8=False)
    assert relative(larger, tensors[engine.graph.outputs[0]]) <= 1e-5


def test_points_and_dlpack(example):
    engine = SparseEngine.load(example_path())
    rng = np.random.default_rng(0)
    points = rng.uniform([-54, -54, -5, 0, 0], [-50, -50, 3, 255, 0.5], (4000, 5))
    rules = engine.voxel_rules
    features, indices, batch = engine.voxelize(points.astype(np.float32))
    assert batch == 1 and indices[:, 1].max() < 40 and rules.max_voxels == 0
    dense = engine(features, indices, (41, 72, 56))
    np.testing.assert_array_equal(np.from_dlpack(dense), dense)

    class Foreign:  # anything that speaks DLPack
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **_):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    again = engine(Foreign(features), Foreign(indices), (41, 72, 56))
    np.testing.assert_array_equal(again, dense)


def test_bad_frames_are_refused_and_the_engine_goes_on(example):
    _, features, indices, grid = example
    engine = SparseEngine.load(example_path())
    good = engine(features, indices, grid)
    nan = features.copy()
    nan[3, 2] = np.nan
    for bad, match in (
        ((nan, indices, grid), "NaN"),
        ((features.astype(np.float32) * 1e5, indices, grid), "half"),
        ((features[:, :4], indices, grid), "expected features"),
        ((features, indices[:-1], grid), "expected features"),
        ((features.astype(int), indices, grid), "floating"),
        ((features, np.concatenate([indices[:1], indices[:-1]]), grid), "both"),
        ((features, indices, (41, 10, 10)), "outside"),
        ((features, indices, (41, 72)), "three sizes"),
    ):
        with pytest.raises(FrameError, match=match):
            engine(*bad)
    np.testing.assert_array_equal(engine(features, indices, grid), good)
    empty = engine(features[:0], indices[:0], grid)
    assert empty.shape == good.shape and not empty.any()


def test_choices_are_named(example):
    with pytest.raises(BackendUnavailableError, match="expected device"):
        SparseEngine.load(example_path(), device="tpu")
    with pytest.raises(LidarGraphError, match="precision"):
        SparseEngine.load(example_path(), precision="int4")
    with pytest.raises(LidarGraphError, match="calibrate"):
        SparseEngine.load(example_path(), precision="int8")


def test_addition_that_cannot_be_fused(example):
    """An addition whose operand is a graph output stays on its own."""
    _, features, indices, grid = example
    source = read_onnx(example_path())
    nodes = {node.name: node for node in source.nodes}
    # A second reader of conv2's output keeps the addition apart.
    source.outputs.append(nodes["conv2"].outputs[0])
    engine = SparseEngine(build_graph(source), "fp32")
    plain = SparseEngine.load(example_path(), "fp32")
    np.testing.assert_allclose(
        engine(features, indices, grid), plain(features, indices, grid), atol=1e-5
    )
    assert any(type(s).__name__ == "AddStep" for s in engine.plan.steps)
