"""The CUDA engine over stand-ins of driver and kernels: the same bits as on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_sparse import FakeProgram, FakeSparse
from golden_lidar import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from lidar_layers import check_int8_layers
from lidar_reference import calibrated_example, example_path, with_inverse

from s4d_ops import sparse_cuda
from s4d_runtime.cli import main
from s4d_runtime.cuda import driver as driver_module
from s4d_runtime.errors import BackendUnavailableError, DeviceError, FrameError
from s4d_runtime.lidar import (
    DeviceTensor,
    LidarGraphError,
    LidarManifest,
    SparseEngine,
    VoxelRules,
    read_tensor,
    write_lidar_artifact,
)
from s4d_runtime.lidar.arena import Buffer, assign_offsets
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx

GRID = (41, 72, 56)


@pytest.fixture
def device(monkeypatch):
    """A device made of stand-ins."""
    driver = FakeDriver()
    monkeypatch.setattr(driver_module, "_library", lambda: driver)
    sparse = FakeSparse(driver)
    monkeypatch.setattr(sparse_cuda, "native", lambda: sparse)
    return sparse


@pytest.fixture(scope="module")
def frame():
    data = golden("example_scn_small_fp16.npz")
    return data["in/feat_fp16"], data["in/idx"]


class OnDevice:
    """Another library's array: the stand-in's device memory is host memory."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array)
        self.__cuda_array_interface__ = self.array.__array_interface__


def engines(graph, precision="auto", **options):
    return (
        SparseEngine(graph, precision, device="cuda", **options),
        SparseEngine(graph, precision, options.get("voxel_rules")),
    )


def scattered(seed, count, shape=GRID, batch=1):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(batch * int(np.prod(shape)))[:count]
    rows = np.stack(np.unravel_index(keys, (batch, *shape)), 1).astype(np.int32)
    return rng.standard_normal((len(rows), 5)).astype(np.float16), rows


def half_outputs(source):
    """Some int8 layers hand on half: their readers make codes of it."""
    for node in source.nodes:
        if node.name in ("conv5", "add2", "conv12"):
            node.attributes["output_precision"] = "fp16"


def same(got, want, exact):
    """Equal, or, where float32 sums were formed in another order, up to that and a rare code."""
    assert got.dtype == want.dtype
    if exact:
        np.testing.assert_array_equal(got, want)
    elif got.dtype == np.int8:
        flips = np.abs(got.astype(int) - want)
        assert (flips > 0).mean() <= 1e-3 and flips.max(initial=0) <= 3
    else:
        wide = want.astype(np.float64)
        assert np.linalg.norm(got - wide) <= (5e-3 if got.dtype == np.float16 else 1e-6) * (
            np.linalg.norm(wide)
        )


@pytest.mark.parametrize("change", [lambda source: None, half_outputs])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_same_bits_as_on_the_cpu(device, frame, precision, change):
    features, indices = frame
    source = calibrated_example(features, indices, GRID)
    change(source)
    cuda, cpu = engines(build_graph(source), precision)
    assert cuda.device == "cuda" and cuda.plan.steps == cpu.plan.steps
    want = cpu(features, indices)
    for _ in range(6):  # piece by piece, captured, replayed
        got = cuda(features, indices)
        assert isinstance(got, np.ndarray) and got.dtype == want.dtype
        same(got, want, exact=precision != "int8")
    traced, expected = (e.trace(features, indices, fused=True) for e in (cuda, cpu))
    for name, rows in expected.items():
        if isinstance(rows, np.ndarray):
            if name in cuda.graph.outputs:
                same(traced[name], rows, exact=precision != "int8")
            continue
        order = np.lexsort(rows.indices.T[::-1])
        np.testing.assert_array_equal(traced[name].indices, rows.indices[order])
        same(traced[name].features, rows.features[order], exact=precision != "int8")
    loose = cuda.trace(features, indices)
    assert len(loose) > len(traced)
    assert check_int8_layers(cuda, features, indices, GRID) == (18 if precision == "int8" else 0)


def test_frames_of_any_size_and_what_stays_reserved(device):
    cuda, cpu = engines(build_graph(read_onnx(example_path())))
    held = []
    for seed, count in enumerate((3, 500, 0, 2500, 1, 900, 2500)):
        features, rows = scattered(seed, count)
        np.testing.assert_array_equal(cuda(features, rows), cpu(features, rows))
        held.append((cuda.cuda.nbytes, len(device.driver.live)))
    assert held[-1] == held[-2] == held[3]  # nothing grew after the largest frame
    before = device.driver.calls["cuMemAlloc_v2"]
    for seed in range(6):
        cuda(*scattered(seed, 300 + 300 * seed))
    assert device.driver.calls["cuMemAlloc_v2"] == before


def test_batch_and_other_grids(device):
    cuda, cpu = engines(build_graph(read_onnx(example_path())))
    for seed, (shape, batch) in enumerate(((GRID, 2), ((41, 88, 72), 1), (GRID, 3), (GRID, 2))):
        features, rows = scattered(seed, 1500, shape, batch)
        np.testing.assert_array_equal(
            cuda(features, rows, shape, batch), cpu(features, rows, shape, batch)
        )


def test_device_arrays_are_read_and_written_in_place(device, frame):
    features, indices = frame
    cuda, cpu = engines(build_graph(read_onnx(example_path())), max_voxels=2000)
    want = cpu(features, indices)
    empty = [OnDevice(a[:0]) for a in (features, indices)]
    for array in empty:  # as torch's empty tensors
        array.__cuda_array_interface__ = {**array.array.__array_interface__, "data": (0, False)}
    assert not cuda(*empty).numpy().any()
    result = cuda(OnDevice(features), OnDevice(indices))
    assert isinstance(result, DeviceTensor) and result.__dlpack_device__() == (2, 0)
    np.testing.assert_array_equal(result.numpy(), want)
    np.testing.assert_array_equal(np.asarray(result), want)
    out = OnDevice(np.zeros_like(want))
    given = cuda.cuda.enqueue(OnDevice(features), OnDevice(indices), out=out)
    levels = cuda.cuda.check()
    assert levels[:4] == [842, 1060, 504, 161]
    assert given.address == out.array.ctypes.data
    np.testing.assert_array_equal(out.array, want)
    # A result that is held keeps its memory; one that is dropped gives it to the next.
    other = cuda(OnDevice(features), OnDevice(indices))
    assert other.address != result.address
    address = other.address
    del other
    assert cuda(OnDevice(features), OnDevice(indices)).address == address
    with pytest.raises(FrameError, match="expected out"):
        cuda.cuda.enqueue(OnDevice(features), OnDevice(indices), out=OnDevice(out.array[:, :3]))
    with pytest.raises(FrameError, match="one device"):
        cuda(OnDevice(features), indices)
    with pytest.raises(FrameError, match="int32"):
        cuda(OnDevice(features), OnDevice(indices.astype(np.int64)))


def test_a_count_on_the_device(device, frame):
    features, indices = frame
    cuda, cpu = engines(build_graph(read_onnx(example_path())), max_voxels=2000)
    count = OnDevice(np.array([600], np.int32))
    address = count.array.ctypes.data
    for number in (600, 842, 1, 0):
        count.array[0] = number
        result = cuda.cuda.enqueue(OnDevice(features), OnDevice(indices), count=address)
        assert cuda.cuda.check()[0] == number
        np.testing.assert_array_equal(result.numpy(), cpu(features[:number], indices[:number]))
    count.array[0] = 5000
    cuda.cuda.enqueue(OnDevice(features), OnDevice(indices), count=address)
    with pytest.raises(FrameError, match="more than were reserved"):
        cuda.cuda.check()


def test_arrays_at_many_addresses(device, frame):
    """Frames of the same arrays become graphs, others are launched; few graphs are kept."""
    features, indices = frame
    cuda, cpu = engines(build_graph(read_onnx(example_path())), max_voxels=2000)
    count = OnDevice(np.array([0], np.int32))
    rng = np.random.default_rng(0)
    held = [[OnDevice(a) for a in (features, indices, np.zeros((1, 64, 9, 7), np.float16))]
            for _ in range(14)]  # fmt: skip
    for number in range(90):
        # Mostly the first few, so that some come often and others once in a while.
        x, rows, out = held[int(14 * rng.random() ** 4)]
        rows_used = int(rng.integers(1, 843))
        if number % 3:
            count.array[0] = rows_used
            cuda.cuda.enqueue(x, rows, count=count.array.ctypes.data, out=out)
        else:
            parts = [OnDevice(a.array[:rows_used]) for a in (x, rows)]
            cuda.cuda.enqueue(*parts, out=out)
        assert cuda.cuda.check()[0] == rows_used
        np.testing.assert_array_equal(out.array, cpu(features[:rows_used], indices[:rows_used]))
    calls = device.driver.calls
    assert 3 <= calls["cuGraphInstantiateWithFlags"] <= 40
    alive = calls["cuGraphInstantiateWithFlags"] - calls["cuGraphExecDestroy"]
    assert alive <= 12


def test_more_sites_than_reserved_is_said_and_repeated(device):
    cuda, cpu = engines(build_graph(read_onnx(example_path())), max_voxels=3000)
    features, rows = scattered(1, 3000)
    cuda.cuda.enqueue(features, rows)
    with pytest.raises(FrameError, match="more than were reserved"):
        cuda.cuda.check()
    np.testing.assert_array_equal(cuda(features, rows), cpu(features, rows))
    reserved = cuda.cuda.reserve(3000, rows=cuda.cuda.check())
    assert reserved == cuda.cuda.nbytes


def test_callers_streams_and_captures(device, frame):
    features, indices = frame
    cuda, cpu = engines(build_graph(read_onnx(example_path())))
    want = cpu(features, indices)
    cuda(features, indices)
    other = driver_module.Stream()
    result = cuda.cuda.enqueue(OnDevice(features), OnDevice(indices), stream=other.handle)
    assert (
        device.driver._queues[other.handle] and not device.driver._queues[cuda.cuda.stream.handle]
    )
    cuda.cuda.check()
    np.testing.assert_array_equal(result.numpy(), want)
    # The caller records a frame with fixed arrays and replays it with other content.
    x, rows = OnDevice(features.copy()), OnDevice(indices)
    out = OnDevice(np.zeros_like(want))
    other.begin_capture()
    cuda.cuda.enqueue(x, rows, stream=other.handle, out=out, capture=True)
    graph = other.end_capture()
    assert not out.array.any()
    x.array[:] = features[::-1]
    graph.launch(other)
    cuda.cuda.check()
    np.testing.assert_array_equal(out.array, cpu(features[::-1], indices))


@pytest.mark.parametrize("order", ["zyx", "xyz"])
def test_points_on_the_device(device, order):
    rules = VoxelRules(
        low=(0, 0, -5), high=(4.2, 5.4, 3), size=(0.075, 0.075, 0.2), grid_shape_xyz=(56, 72, 40),
        index_order=order,
    )  # fmt: skip
    source = read_onnx(example_path())
    if order == "xyz":
        source.nodes[0].attributes["input_spatial_shape"] = [56, 72, 41]
    cuda, cpu = engines(build_graph(source), voxel_rules=rules)
    rng = np.random.default_rng(0)

    def cloud(count):
        points = rng.uniform([0, 0, -5, 0, 0], [4.2, 5.4, 3, 255, 0.5], (count, 5))
        return points.astype(np.float32)

    for clouds in ([cloud(500)], [cloud(50), cloud(1500), cloud(0)], [cloud(3000)] * 2):
        want = cpu.from_points(clouds)
        np.testing.assert_array_equal(cuda.from_points(clouds), want)
        on_device = cuda.from_points([OnDevice(c) for c in clouds])
        np.testing.assert_array_equal(on_device.numpy(), want)
        features, indices, batch = cuda.voxelize(clouds)
        expected = cpu.voxelize(clouds)
        np.testing.assert_array_equal(features.numpy(), expected[0])
        np.testing.assert_array_equal(indices.numpy(), expected[1])
        assert batch == len(clouds)
        np.testing.assert_array_equal(cuda(features, indices, None, batch).numpy(), want)
    with pytest.raises(FrameError, match="3 to 16"):
        cuda.from_points(np.zeros((4, 2), np.float32))


def test_bad_frames_are_refused_and_the_engine_goes_on(device, frame):
    features, indices = frame
    cuda, cpu = engines(build_graph(read_onnx(example_path())))
    good = cpu(features, indices)
    nan = features.copy()
    nan[3, 2] = np.nan
    for bad, match in (
        ((nan, indices), "NaN"),
        ((features.astype(np.float32) * 1e5, indices), "half"),
        ((features[:, :4], indices), "expected features"),
        ((features, indices[:-1]), "expected features"),
        ((features.astype(int), indices), "floating"),
        ((features, np.concatenate([indices[:1], indices[:-1]])), "both"),
        ((features, indices, (41, 10, 10)), "outside"),
        ((features, indices, (41, 72)), "three sizes"),
        ((features, indices, GRID, 0), "above 0"),
    ):
        with pytest.raises(FrameError, match=match):
            cuda(*bad)
        np.testing.assert_array_equal(cuda(features, indices), good)
    cuda.cuda.close()
    np.testing.assert_array_equal(cuda(features, indices), good)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (0, 1, 2)])
def test_other_axis_orders_of_the_map(device, frame, order):
    """A Transpose before the Reshape, as in x y z files, becomes part of the scatter."""
    features, indices = frame
    source = read_onnx(example_path())
    scatter, reshape = source.nodes[-2:]
    assert (scatter.op_type, reshape.op_type) == ("ScatterDense", "Reshape")
    transpose = copy.deepcopy(reshape)
    transpose.op_type, transpose.name = "Transpose", "transpose0"
    transpose.outputs[:] = ["turned"]
    transpose.attributes = {"dims": [0, 1, *(axis + 2 for axis in order)]}
    reshape.inputs[:] = ["turned"]
    source.nodes.insert(-1, transpose)
    cuda, cpu = engines(build_graph(source))
    want = cpu(features, indices)
    sizes = [(2, 9, 7)[axis] for axis in order]
    assert want.shape == (1, 32 * sizes[0], *sizes[1:])
    np.testing.assert_array_equal(cuda(features, indices), want)


def test_graphs_with_inverse_convolutions_and_loose_additions(device, frame):
    features, indices = frame
    for change in (with_inverse, lambda s: s.outputs.append("2")):
        source = read_onnx(example_path())
        change(source)
        cuda, cpu = engines(build_graph(source), "fp32")
        np.testing.assert_array_equal(cuda(features, indices), cpu(features, indices))


def test_what_the_engine_cannot_do_is_named(device, monkeypatch):
    source = read_onnx(example_path())
    source.outputs[0] = "30"
    with pytest.raises(LidarGraphError, match="dense map"):
        SparseEngine(build_graph(source), device="cuda")
    engine = SparseEngine.load(example_path(), device="auto")
    assert engine.device == "cuda"

    def fail(*_):
        raise device.CudaFailure("convolve: cudaErrorMadeUp (1), made up")

    monkeypatch.setattr("fake_sparse.FakeProgram.run", fail)
    with pytest.raises(DeviceError, match="made up"):
        engine(*scattered(0, 10))
    device.driver.fail["cuInit"] = 100
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        SparseEngine.load(example_path(), device="cuda")
    assert SparseEngine.load(example_path(), device="auto").device == "cpu"


def test_arguments_fit_the_real_module(device, frame, monkeypatch):
    """Every call that the stand-in gets is also put into a program of the real module, unrun."""
    real = pytest.importorskip("s4d_ops.lib._sparse_cuda", reason="s4d-ops was built without CUDA")
    original = FakeProgram.__getattr__
    seen = set()

    def both(self, name):
        def call(*arguments):
            seen.add(name)
            getattr(real.Program(), name)(*arguments)
            original(self, name)(*arguments)

        return call

    monkeypatch.setattr(FakeProgram, "__getattr__", both)
    features, indices = frame
    source = calibrated_example(features, indices, GRID)
    with_inverse(source)
    half_outputs(source)
    for precision in ("int8", "fp32"):
        cuda, _ = engines(build_graph(source), precision)
        cuda(features, indices)
        cuda.trace(features, indices)
    engines(build_graph(read_onnx(example_path())))[0](features, indices)
    cuda.voxelize(np.zeros((10, 5), np.float32))
    assert seen == {
        n.removeprefix("do_") for n in vars(FakeProgram) if n.startswith("do_")
    } - {"copy"}  # fmt: skip
    for dtype in ("float32", "float16", "int8"):
        assert real.padded_channels(dtype, 5) == device.padded_channels(dtype, 5)
        assert real.packed_weight_bytes(dtype, 27, 5, 16) > 0
    assert real.site_map_bytes([1, *GRID]) % 256 == 0
    limits = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.1, 0.1, 0.1]]
    assert real.voxelize_bytes(limits, [10, 10, 10], 10, 0, 1000) > 0
    assert real.voxelize_bytes(limits, [10, 10, 10], 65, 0, 1000) == 0


def test_command_line(device, tmp_path, capsys):
    manifest = LidarManifest(
        name="small", created="2026-01-01T00:00:00Z", versions={}, model={}, precision="fp16",
        voxel_rules=VoxelRules(
            low=(0, 0, -5), high=(4.2, 5.4, 3), size=(0.075, 0.075, 0.2),
            grid_shape_xyz=(56, 72, 40),
        ),
    )  # fmt: skip
    model = write_lidar_artifact(
        tmp_path / "small.s4d", manifest, {"model.onnx": example_path().read_bytes()}
    )
    points = np.random.default_rng(0).uniform([0, 0, -3, 0, 0], [4, 5, -1, 2, 1], (900, 5))
    np.save(tmp_path / "a.npy", points.astype(np.float32))
    for where in ("cuda", "cpu"):
        out = tmp_path / where
        command = ["lidar", str(tmp_path / "a.npy"), "--model", str(model), "--device", where]
        assert main([*command, "--out", str(out), "--no-pictures"]) == 0
        assert f"fp16 on {where}, 1 clouds" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_tensor(tmp_path / "cuda" / "a.tensor"), read_tensor(tmp_path / "cpu" / "a.tensor")
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_memory_is_shared_only_by_tensors_of_different_times(lives):
    buffers = [Buffer(str(n), size, min(a, b), max(a, b)) for n, (size, a, b) in enumerate(lives)]
    total = assign_offsets(buffers)
    for i, one in enumerate(buffers):
        assert one.offset % 256 == 0 and one.offset + one.size <= total
        for other in buffers[:i]:
            apart = one.last < other.first or other.last < one.first
            below = one.offset + one.size <= other.offset
            assert apart or below or other.offset + other.size <= one.offset
    assert total <= assign_offsets(buffers, share=False)
