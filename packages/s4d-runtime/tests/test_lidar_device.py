"""The CUDA engine over stand-ins of driver and kernels: the same bits as on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from golden_lidar import golden
from lidar_device import GRID, engines, half_outputs, same, scattered
from lidar_layers import check_int8_layers
from lidar_reference import calibrated_example, example_path, with_inverse

from s4d_runtime.cli import main
from s4d_runtime.errors import BackendUnavailableError, DeviceError, FrameError
from s4d_runtime.lidar import (
    LidarGraphError,
    LidarManifest,
    SparseEngine,
    VoxelRules,
    read_tensor,
    write_lidar_artifact,
)
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx


@pytest.fixture(scope="module")
def frame():
    data = golden("example_scn_small_fp16.npz")
    return data["in/feat_fp16"], data["in/idx"]


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


def test_more_sites_than_reserved_is_said_and_repeated(device):
    cuda, cpu = engines(build_graph(read_onnx(example_path())), max_voxels=3000)
    features, rows = scattered(1, 3000)
    cuda.cuda.enqueue(features, rows)
    with pytest.raises(FrameError, match="more than were reserved"):
        cuda.cuda.check()
    np.testing.assert_array_equal(cuda(features, rows), cpu(features, rows))
    reserved = cuda.cuda.reserve(3000, rows=cuda.cuda.check())
    assert reserved == cuda.cuda.nbytes


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


def test_halves_of_float32_results(device, frame):
    """Two half stages in an int8 file: convolutions write halves; floats only where read."""
    features, indices = frame
    source = calibrated_example(features, indices, GRID)
    for node in source.nodes[: [node.name for node in source.nodes].index("conv9")]:
        for name in {"precision", "output_precision"} & node.attributes.keys():
            node.attributes[name] = "fp16"
    cuda, cpu = engines(build_graph(source), "int8")
    want = cpu(features, indices)
    for _ in range(6):
        same(cuda(features, indices), want, exact=False)
    program = cuda.cuda._reservation._bound.program
    assert program._split == {"10", "11", "14"}
    # Read as halves alone: no memory for the floats.
    assert program._halves.keys() - program.places.tensors.keys() == {"11"}


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
        assert f"fp16 on {where}, 1 cloud" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_tensor(tmp_path / "cuda" / "a.tensor"), read_tensor(tmp_path / "cpu" / "a.tensor")
    )
