"""The sparse engine on a CUDA device: golden data, other libraries' arrays, many frames."""

from __future__ import annotations

import numpy as np
import pytest
from golden_lidar import golden, golden_rules, real_points
from lidar_layers import check_int8_layers
from lidar_reference import calibrated_example, emulate, example_path, with_inverse

from s4d_runtime.errors import FrameError
from s4d_runtime.lidar import SparseEngine, VoxelRules
from s4d_runtime.lidar.cuda_encoder import cuda_problem
from s4d_runtime.lidar.graph import build_graph
from s4d_runtime.lidar.onnx_file import read_onnx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason="no CUDA device or no CUDA build"),
]
GRID = (41, 72, 56)


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def example():
    data = golden("example_scn_small_fp16.npz")
    return data, data["in/feat_fp16"], data["in/idx"]


def scattered(rng, count):
    keys = rng.permutation(int(np.prod(GRID)))[:count]
    rows = np.stack(np.unravel_index(keys, (1, *GRID)), 1).astype(np.int32)
    return rng.standard_normal((count, 5)).astype(np.float16), rows


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_example_every_tensor(example, precision, limit):
    data, features, indices = example
    engine = SparseEngine.load(example_path(), precision, "cuda")
    for _ in range(3):
        dense = engine(features, indices)
        assert relative(dense, data["fp16/dense"]) <= limit
    want = data["fp16/dense"]
    assert np.abs(dense - want).max() <= 3e-3 * np.abs(want).max()
    stages = {842: "stage1", 1060: "stage2", 504: "stage3", 161: "stage4"}
    tensors = engine.trace(features, indices)
    names = [n for n in data.files if n.startswith("fp16/tensor/")]
    assert names
    for name in names:
        rows = tensors[name.removeprefix("fp16/tensor/")]
        np.testing.assert_array_equal(rows.indices, data[f"idx/{stages[len(rows.indices)]}"])
        assert relative(rows.values(), data[name]) <= limit, name
    for name in [n for n in data.files if n.startswith("fp16/checksum/")]:
        got = tensors[name.removeprefix("fp16/checksum/")].values().astype(np.float64)
        assert got.size == data[name][0]
        np.testing.assert_allclose(np.abs(got).sum(), data[name][2], rtol=limit)


@pytest.mark.parametrize("change", ["clipped", "maximum", "everything"])
def test_example_int8(example, change):
    """End to end within the golden limits; each layer, fed its own inputs, as on the CPU."""
    _, features, indices = example
    source = calibrated_example(features, indices, GRID)
    for node in source.nodes:
        for name in list(node.attributes):
            if change == "clipped" and name.startswith("input") and name.endswith("_range"):
                node.attributes[name] *= 0.7
            if change == "everything" and name in ("precision", "output_precision"):
                node.attributes[name] = "int8"
    graph = build_graph(source)
    cuda = SparseEngine(graph, device="cuda")
    got = cuda(features, indices).astype(np.float64).ravel()
    name = graph.outputs[0]
    emulation = emulate(source, features, indices, GRID, int8=True)[0][name].ravel()
    half = emulate(source, features, indices, GRID, int8=False)[0][name].ravel()
    a, b = got - half, emulation - half
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    effect = relative(half, emulation)
    print(f"{change}: error {relative(got, emulation):.4f}, effect {effect:.4f}, cos {cosine:.5f}")
    assert relative(got, emulation) <= 0.035 and cosine >= 0.85
    assert check_int8_layers(cuda, features, indices, GRID) == (
        21 if change == "everything" else 18
    )


def test_inverse_and_loose_additions(example):
    _, features, indices = example
    for change in (with_inverse, lambda s: s.outputs.append("2")):
        source = read_onnx(example_path())
        change(source)
        graph = build_graph(source)
        want = SparseEngine(graph, "fp32")(features, indices)
        for precision, limit in (("fp32", 1e-5), ("fp16", 3e-3)):
            got = SparseEngine(graph, precision, device="cuda")(features, indices)
            assert relative(got, want.astype(np.float64)) <= limit


@pytest.mark.parametrize("part", ["main", "cap"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_voxels_of_the_real_cloud(part, dtype):
    data, rules = golden("golden_voxelize.npz"), golden_rules()
    limits = rules.VOX
    max_points, max_voxels = (int(n) for n in data[f"{part}/params"])
    chosen = VoxelRules(
        low=tuple(limits["low"]), high=tuple(limits["high"]), size=tuple(limits["size"]),
        grid_shape_xyz=tuple(int(n) for n in limits["grid"]), max_points=max_points,
        max_voxels=max_voxels,
    )  # fmt: skip
    engine = SparseEngine.load(example_path(), "fp16", "cuda", chosen)
    features, indices, batch = engine.voxelize(real_points().astype(dtype))
    count = int(data[f"{part}/n_voxels"])
    assert batch == 1 and indices.shape == (count, 4)
    assert count == (105086 if part == "main" else 40000)
    rows = indices.numpy().astype(np.int64)
    keys = (rows[:, 1] * 1440 + rows[:, 2]) * 1440 + rows[:, 3]
    order = np.argsort(keys)
    if part == "main":
        np.testing.assert_array_equal(keys[order], data["main/sorted_keys"])
    picked = order[data[f"{part}/rows"]]
    np.testing.assert_array_equal(features.numpy()[picked], data[f"{part}/mean_rows"])
    host = chosen.voxelize(real_points().astype(np.float32))
    np.testing.assert_array_equal(features.numpy(), host.features)
    np.testing.assert_array_equal(indices.numpy(), host.indices())


def test_points_to_map(example):
    rules = VoxelRules(
        low=(0, 0, -5), high=(4.2, 5.4, 3), size=(0.075, 0.075, 0.2), grid_shape_xyz=(56, 72, 40)
    )
    rng = np.random.default_rng(0)
    clouds = [
        rng.uniform([0, 0, -5, 0, 0], [4.2, 5.4, 3, 2, 0.5], (n, 5)).astype(np.float32)
        for n in (3000, 20000, 0)
    ]
    cuda = SparseEngine.load(example_path(), "fp32", "cuda", rules)
    cpu = SparseEngine.load(example_path(), "fp32", "cpu", rules)
    for given in (clouds[:1], clouds, clouds[1:]):
        assert relative(cuda.from_points(given), cpu.from_points(given).astype(float)) <= 1e-5


def test_torch_arrays_without_copies(example):
    torch = pytest.importorskip("torch")
    _, features, indices = example
    engine = SparseEngine.load(example_path(), "fp16", "cuda")
    x, rows = torch.from_numpy(features).cuda(), torch.from_numpy(indices).cuda()
    want = engine(features, indices)
    result = engine(x, rows)
    tensor = torch.from_dlpack(result)
    assert tensor.data_ptr() == result.address and tensor.is_cuda
    address = result.address
    del result  # the tensor keeps the memory
    other = engine(x, rows)
    assert other.address != address
    np.testing.assert_array_equal(tensor.cpu().numpy(), want)
    del tensor
    assert engine(x, rows).address == address

    # A busy stream of the caller: inputs are made there, the result is used there, no waiting.
    stream, out = torch.cuda.Stream(), torch.zeros(want.shape, dtype=torch.float16, device="cuda")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.from_numpy(features).pin_memory().cuda(non_blocking=True)
        engine.cuda.enqueue(late, rows, stream=stream.cuda_stream, out=out)
        doubled = out * 2
    stream.synchronize()
    engine.cuda.check()
    np.testing.assert_array_equal(doubled.cpu().numpy(), want * 2)
    own = engine.cuda.enqueue(x, rows)  # on the engine's stream; torch's waits by itself
    np.testing.assert_array_equal(torch.from_dlpack(own).cpu().numpy(), want)
    with pytest.raises(FrameError, match="contiguous"):
        engine(torch.cat([x, x], 1)[:, :5], rows)


def test_capture_into_a_graph_of_torch_with_a_count_on_the_device(example):
    torch = pytest.importorskip("torch")
    _, features, indices = example
    engine = SparseEngine.load(example_path(), "fp16", "cuda", max_voxels=2000)
    x = torch.zeros(2000, 5, dtype=torch.float16, device="cuda")
    rows = torch.zeros(2000, 4, dtype=torch.int32, device="cuda")
    count = torch.zeros(1, dtype=torch.int32, device="cuda")
    want = engine(features, indices)
    out = torch.zeros(want.shape, dtype=torch.float16, device="cuda")
    # Once as it will run, so that kernels are loaded and memory is there.
    engine.cuda.enqueue(x, rows, count=count.data_ptr(), out=out)
    engine.cuda.check()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        engine.cuda.enqueue(
            x, rows, stream=torch.cuda.current_stream().cuda_stream, count=count.data_ptr(),
            out=out, capture=True,
        )  # fmt: skip
    for number in (842, 500, 1, 0, 842):
        x[:number] = torch.from_numpy(features[:number]).cuda()
        rows[:number] = torch.from_numpy(indices[:number]).cuda()
        count.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        assert engine.cuda.check()[0] == number
        np.testing.assert_array_equal(
            out.cpu().numpy(), engine(features[:number], indices[:number])
        )


def test_bad_frames_are_refused_and_the_engine_goes_on(example):
    _, features, indices = example
    engine = SparseEngine.load(example_path(), "fp16", "cuda")
    good = engine(features, indices)
    nan = features.copy()
    nan[3, 2] = np.nan
    for bad, match in (
        ((nan, indices), "NaN"),
        ((features.astype(np.float32) * 1e5, indices), "half"),
        ((features, np.concatenate([indices[:1], indices[:-1]])), "both"),
        ((features, indices, (41, 10, 10)), "outside"),
    ):
        with pytest.raises(FrameError, match=match):
            engine(*bad)
        np.testing.assert_array_equal(engine(features, indices), good)
    assert not engine(features[:0], indices[:0]).any()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_ten_thousand_frames(example, precision):
    """Random numbers of voxels: the rows of every level are right, the same frame gives the same
    bits, and memory does not grow."""
    torch = pytest.importorskip("torch")
    _, features, indices = example
    engine = SparseEngine(
        build_graph(calibrated_example(features, indices, GRID)), precision, device="cuda"
    )
    pool = torch.nn.functional.max_pool3d
    steps = [
        ((3, 3, 3), 2, 1),
        ((3, 3, 3), 2, 1),
        ((3, 3, 3), 2, (0, 1, 1)),
        ((3, 1, 1), (2, 1, 1), 0),
    ]
    generator = torch.Generator("cuda").manual_seed(0)
    cells = int(np.prod(GRID))
    x = torch.randn(8000, 5, device="cuda", generator=generator).half()
    places = torch.randperm(cells, device="cuda", generator=generator)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 8000, 10_000)
    counts[:4] = (8000, 0, 1, 7999)
    first, held, expected, found = {}, 0, [], []
    for number, count in enumerate(counts.tolist()):
        start = int(rng.integers(0, cells - 8000)) if number % 100 else 0
        keys = places[start : start + count]
        parts = [keys // (72 * 56), keys // 56 % 72, keys % 56]
        rows = torch.stack([torch.zeros_like(keys), *parts], 1).int()
        result = engine.cuda.enqueue(x[:count], rows)
        try:
            levels = engine.cuda.check()
        except FrameError:
            assert number < 20  # growing at first
            result = engine(x[:count], rows)
            levels = engine.cuda.check()
        occupied = torch.zeros(cells, device="cuda")
        occupied[keys] = 1
        occupied = occupied.view(1, 1, *GRID)
        sums = [occupied.sum()]
        for kernel, stride, padding in steps:
            occupied = pool(occupied, kernel, stride, padding)
            sums.append(occupied.sum())
        expected.append(torch.stack(sums))
        found.append(levels)
        if number % 100 == 0:
            value = torch.from_dlpack(result).double().sum().item()
            assert first.setdefault(count, value) == value and np.isfinite(value)
        if number == 500:
            held = engine.cuda.nbytes
    wrong = (torch.stack(expected).cpu() != torch.tensor(found)).any(1)
    assert not wrong.any(), f"{int(wrong.sum())} frames with wrong rows"
    # The device's free memory would count whatever else runs there.
    assert engine.cuda.nbytes == held
