"""Split products for ONNX Runtime: values against double precision, magnitudes, refusals."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(),
        reason="needs onnxruntime-gpu",
    ),
]

from s4d_ops import library_path  # noqa: E402

# n, h, w, c, k, kernel (height, width), stride, pad
CASES = (
    (6, 64, 176, 64, 64, (1, 1), 1, 0),
    (2, 64, 176, 64, 64, (3, 3), 1, 1),
    (2, 256, 704, 3, 64, (7, 7), 2, 3),
    (6, 32, 88, 128, 512, (1, 1), 1, 0),
    (1, 33, 47, 256, 128, (3, 3), 2, 1),
    (3, 8, 22, 2048, 256, (1, 1), 1, 0),
    (6, 8, 22, 512, 512, (3, 3), 1, 1),
    (1, 1, 1, 8, 8, (1, 1), 1, 0),
    (1, 3, 2, 24, 40, (3, 3), 2, 1),
    (2, 9, 7, 40, 136, (5, 3), 1, 2),
    (1, 900, 1, 256, 1024, (1, 1), 1, 0),
    (1, 5, 300, 16, 72, (1, 4), 3, 0),
)


def session(nodes: list, inputs: dict[str, np.ndarray]):
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info(n, 1, [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("s4d.fused", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library_path("onnxruntime", "cuda"))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CUDAExecutionProvider"]
    )


def pack_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, R, S, C) as the operator reads it, and the factor of its scale."""
    k, c = weight.shape[0], weight.shape[3]
    wide = np.zeros((*weight.shape[:3], -(-c // 8) * 8), np.float32)
    wide[..., :c] = weight
    rows = wide.reshape(k, -1)
    shift = 14 - np.frexp(np.abs(rows).max(axis=1))[1]
    rows = np.pad(np.ldexp(rows, shift[:, None]), ((0, 0), (0, -rows.shape[1] % 32)))
    high = rows.astype(np.float16)
    low = (rows - high.astype(np.float32)).astype(np.float16)
    parts = np.stack([high.reshape(k, -1, 8), low.reshape(k, -1, 8)], axis=2)
    return parts.reshape(k, -1).view(np.float32), np.ldexp(np.float32(1), -shift)


def unsplit(parts: np.ndarray) -> np.ndarray:
    """Float64 values of split tensors."""
    halves = np.ascontiguousarray(parts).view(np.float16).astype(np.float64)
    halves = halves.reshape(*parts.shape[:-1], parts.shape[-1] // 8, 2, 8)
    return (halves[..., 0, :] + halves[..., 1, :] / 2048).reshape(parts.shape)


def made(case: tuple, scale: float = 1.0, weights: float = 1.0) -> dict[str, np.ndarray]:
    n, h, w, c, k, (r, s), stride, pad = case
    out = (n, (h + 2 * pad - r) // stride + 1, (w + 2 * pad - s) // stride + 1, k)
    rng = np.random.default_rng(0)
    shapes = {"x": (n, h, w, c), "w": (k, r, s, c), "b": (k,), "z": out}
    feed = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    feed["x"] *= scale
    feed["w"] *= weights / (c * r * s) ** 0.5
    feed["b"] *= scale * weights
    feed["z"] *= scale * weights
    return {name: array.astype(np.float32) for name, array in feed.items()}


def convolve(
    case: tuple, feed: dict[str, np.ndarray], relu: bool, residual: str, split: bool
) -> np.ndarray:
    """Through ONNX Runtime, twice; `residual`: "", "single" or "split"."""
    (r, s), stride, pad = case[5:]
    make = onnx.helper.make_node
    parts, factor = pack_weight(feed["w"])
    inputs = {"x": feed["x"], "w": parts, "f": np.stack([feed["b"], factor])}
    nodes = [make("SplitValues", ["x"], ["xs"], domain="s4d.fused")]
    names = ["xs", "w", "f"]
    attributes = {"kernel_h": r, "kernel_w": s, "stride_h": stride, "stride_w": stride}
    attributes |= {"pad_h": pad, "pad_w": pad, "relu": int(relu), "split": int(split)}
    if residual:
        inputs["z"] = feed["z"]
        names.append("z")
        attributes["split_residual"] = int(residual == "split")
    if residual == "split":
        nodes.append(make("SplitValues", ["z"], ["zs"], domain="s4d.fused"))
        names[3] = "zs"
    kind = "SplitConvolutionAdd" if residual else "SplitConvolution"
    nodes.append(make(kind, names, ["y"], domain="s4d.fused", **attributes))
    runner = session(nodes, inputs)
    (first,) = runner.run(None, inputs)
    (second,) = runner.run(None, inputs)
    assert first.tobytes() == second.tobytes()
    return unsplit(first) if split else first


def truth(
    case: tuple, feed: dict[str, np.ndarray], relu: bool, residual: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In double precision; the sum of absolute products; and what cuDNN makes of it in float32."""
    stride, pad = case[6:]
    x, w = (torch.from_numpy(feed[n]).cuda().permute(0, 3, 1, 2) for n in "xw")
    bias = torch.from_numpy(feed["b"]).cuda()
    torch.backends.cudnn.allow_tf32 = False

    def result(x, w, b, z):
        y = torch.nn.functional.conv2d(x, w, b, stride, pad).permute(0, 2, 3, 1)
        return y + z if residual else y

    z = torch.from_numpy(feed["z"]).cuda()
    exact = result(x.double(), w.double(), bias.double(), z.double())
    bound = result(*(t.double().abs() for t in (x, w, bias, z)))
    single = result(x, w, bias, z)
    if relu:
        exact, single = exact.relu(), single.relu()
    return exact.cpu().numpy(), bound.cpu().numpy(), single.cpu().numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_good_as_single_precision(case: tuple) -> None:
    """Every kind of input and result; errors against those of cuDNN in float32."""
    feed = made(case)
    for relu, residual, split in (
        (False, "", False),
        (True, "single", False),
        (True, "split", True),
        (False, "split", False),
        (True, "", True),
    ):
        exact, bound, single = truth(case, feed, relu, bool(residual))
        error = np.abs(convolve(case, feed, relu, residual, split) - exact) / bound
        reference = np.abs(single - exact) / bound
        # A value in two halves has 22 bits.
        assert error.max() <= max(1.5 * reference.max(), 2.5e-7), (error.max(), reference.max())
        root = [float(np.sqrt((e**2).mean())) for e in (error, reference)]
        assert root[0] <= max(1.5 * root[1], 6e-8), root


@pytest.mark.parametrize("scale", (6000.0, 1.0, 1e-3, 1e-7), ids=str)
@pytest.mark.parametrize("weights", (1.0, 1e25, 1e-20), ids=str)
def test_magnitudes(scale: float, weights: float) -> None:
    """Of values within half's range, of weights whatever they are."""
    case = CASES[4]
    feed = made(case, scale, weights)
    exact, bound, _ = truth(case, feed, False, False)
    got = convolve(case, feed, False, "", False)
    small = 2.0**-36 * np.abs(feed["w"].astype(np.float64)).reshape(case[4], -1).sum(axis=1)
    assert (np.abs(got - exact) <= 2.5e-7 * bound + small).all()


def test_values_beyond_half_show() -> None:
    """They become NaN where they are read, and nowhere else."""
    case = CASES[0]
    feed = made(case)
    feed["x"][0, 3, 5, 7] = 70000
    got = convolve(case, feed, True, "", False)
    where = np.argwhere(np.isnan(got).any(axis=-1))
    assert where.tolist() == [[0, 3, 5]]


def test_split_values_keep_22_bits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 7, 13)).astype(np.float32) * np.float32(1000)
    node = onnx.helper.make_node("SplitValues", ["x"], ["y"], domain="s4d.fused")
    (got,) = session([node], {"x": x}).run(None, {"x": x})
    assert got.shape == (2, 5, 7, 16)
    values = unsplit(got)
    assert not values[..., 13:].any()
    assert (np.abs(values[..., :13] - x) <= 2.0**-22 * np.abs(x)).all()


@pytest.mark.parametrize("split", (False, True))
@pytest.mark.parametrize(("size", "stride", "pad"), ((3, 2, 1), (2, 2, 0), (5, 3, 2)))
def test_pooling(size: int, stride: int, pad: int, split: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 31, 50, 24)).astype(np.float32) - 2
    x[1, 4, 4, 4] = np.nan
    make = onnx.helper.make_node
    attributes = {"kernel_h": size, "kernel_w": size, "stride_h": stride, "stride_w": stride}
    attributes |= {"pad_h": pad, "pad_w": pad, "split": int(split)}
    nodes = [
        make("SplitValues", ["x"], ["s"], domain="s4d.fused"),
        make("SplitMaxPool", ["s"], ["y"], domain="s4d.fused", **attributes),
    ]
    (got,) = session(nodes, {"x": x}).run(None, {"x": x})
    # Against the largest of the values as they are held.
    parts, low = x.astype(np.float16), None
    low = ((x - parts.astype(np.float32)) * 2048).astype(np.float16).astype(np.float32)
    held = torch.from_numpy(parts.astype(np.float32) + low / 2048).permute(0, 3, 1, 2)
    expected = torch.nn.functional.max_pool2d(held, size, stride, pad).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(unsplit(got) if split else got, expected.numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"x": (1, 4, 4, 40)}, "steps for this window"),
        ({"x": (1, 4, 16)}, "four dimensions|rank"),
        ({"f": (2, 15)}, "bias and scale"),
        ({"z": (1, 4, 5, 16)}, "residual"),
        ({"w": (16, 40)}, "steps for this window"),
        ({"w": (12, 32), "f": (2, 12), "z": (1, 4, 4, 12)}, "multiple of 8"),
        ({"x": (1, 0, 4, 16)}, "size of the input"),
        ({"x": (1, 4, 4, 12)}, "steps for this window|multiple of 8"),
    ),
)
def test_what_does_not_fit_is_refused(change: dict[str, tuple], message: str) -> None:
    shapes = {"x": (1, 4, 4, 16), "w": (16, 32), "f": (2, 16), "z": (1, 4, 4, 16)} | change
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w")
    attributes = dict.fromkeys(names, 1) | dict.fromkeys(("pad_h", "pad_w", "relu", "split"), 0)
    node = onnx.helper.make_node(
        "SplitConvolutionAdd",
        list("xwfz"),
        ["y"],
        domain="s4d.fused",
        split_residual=0,
        **attributes,
    )
    runner = session([node], inputs)
    with pytest.raises(Exception, match=f"(?i){message}"):
        runner.run(None, inputs)


@pytest.mark.parametrize(
    ("rows", "c", "k"),
    ((900, 256, 512), (600, 512, 512), (6, 256, 416), (1, 8, 8), (901, 1000, 24)),
)
@pytest.mark.parametrize("relu", (False, True))
def test_linear_layers(rows: int, c: int, k: int, relu: bool) -> None:
    """Float32 rows, split on the way."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, rows, c)).astype(np.float32)
    w = (rng.standard_normal((k, 1, 1, c)) / c**0.5).astype(np.float32)
    bias = rng.standard_normal(k).astype(np.float32)
    parts, factor = pack_weight(w)
    inputs = {"x": x, "w": parts, "f": np.stack([bias, factor])}
    node = onnx.helper.make_node(
        "SplitLinear", list(inputs), ["y"], domain="s4d.fused", relu=int(relu)
    )
    (got,) = session([node], inputs).run(None, inputs)
    flat = w.reshape(k, c).astype(np.float64)
    exact = x.astype(np.float64) @ flat.T + bias
    bound = np.abs(x) @ np.abs(flat).T + np.abs(bias)
    assert got.shape == (1, rows, k)
    assert (np.abs(got - (np.maximum(exact, 0) if relu else exact)) <= 2.5e-7 * bound).all()


def test_sessions_in_threads() -> None:
    feeds = [(case, made(case)) for case in (CASES[1], CASES[4], CASES[6], CASES[9])]
    expected = [convolve(case, feed, True, "split", False) for case, feed in feeds]
    wrong: list[int] = []

    def work(number: int) -> None:
        case, feed = feeds[number % 4]
        for _ in range(3):
            got = convolve(case, feed, True, "split", False)
            if not np.array_equal(got, expected[number % 4]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
