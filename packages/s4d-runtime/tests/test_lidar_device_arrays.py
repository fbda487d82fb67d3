"""Callers' arrays, counts, streams and graphs on the CUDA engine, over stand-ins."""

from __future__ import annotations

import numpy as np
import pytest
from fake_sparse import FakeProgram
from golden_lidar import golden
from lidar_device import GRID, OnDevice, engines, half_outputs
from lidar_reference import calibrated_example, example_path, with_inverse

from s4d_runtime.cuda import driver as driver_module
from s4d_runtime.errors import FrameError
from s4d_runtime.lidar import (
    DeviceTensor,
    VoxelRules,
)
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx


@pytest.fixture(scope="module")
def frame():
    data = golden("example_scn_small_fp16.npz")
    return data["in/feat_fp16"], data["in/idx"]


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
        n.removeprefix("do_") for n in dir(FakeProgram) if n.startswith("do_")
    } - {"copy"}  # fmt: skip
    for dtype in ("float32", "float16", "int8"):
        assert real.padded_channels(dtype, 5) == device.padded_channels(dtype, 5)
        assert real.packed_weight_bytes(dtype, 27, 5, 16) > 0
    assert real.site_map_bytes([1, *GRID]) % 256 == 0
    limits = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.1, 0.1, 0.1]]
    assert real.voxelize_bytes(limits, [10, 10, 10], 10, 0, 1000) > 0
    assert real.voxelize_bytes(limits, [10, 10, 10], 65, 0, 1000) == 0
