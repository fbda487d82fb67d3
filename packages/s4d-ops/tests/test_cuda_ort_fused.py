"""The fused operators for ONNX Runtime: values, refusals, other shapes, concurrent sessions."""

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

# n, h, w, c, k, kernel, stride
CASES = (
    (6, 64, 176, 64, 64, 1, 1),
    (6, 64, 176, 64, 64, 3, 1),
    (2, 256, 704, 8, 64, 7, 2),
    (6, 32, 88, 128, 512, 1, 1),
    (1, 33, 47, 256, 128, 3, 2),
    (3, 8, 22, 2048, 256, 1, 1),
    (1, 1, 1, 8, 8, 1, 1),
    (1, 3, 2, 24, 40, 3, 2),
)


def session(n: int, h: int, w: int, c: int, k: int, r: int, s: int, relu: bool, residual: bool):
    helper = onnx.helper
    out = [n, (h + 2 * (r // 2) - r) // s + 1, (w + 2 * (r // 2) - r) // s + 1, k]
    shapes = {"x": [n, h, w, c], "w": [k, r, r, c], "b": [k], "z": out}
    names = list(shapes)[: 4 if residual else 3]
    node = helper.make_node(
        "ConvolutionAdd" if residual else "Convolution",
        names,
        ["y"],
        domain="s4d.fused",
        stride_h=s,
        stride_w=s,
        pad_h=r // 2,
        pad_w=r // 2,
        relu=int(relu),
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, 10, [None] * len(shapes[name])) for name in names],
        [helper.make_tensor_value_info("y", 10, None)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("s4d.fused", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library_path("onnxruntime", "cuda"))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    made = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CUDAExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(shapes[name]).astype(np.float16) for name in names}
    feed["w"] = (feed["w"] / (c * r * r) ** 0.5).astype(np.float16)
    return made, feed


def truth(feed: dict[str, np.ndarray], stride: int, relu: bool) -> np.ndarray:
    x, w = (torch.from_numpy(feed[n]).double().permute(0, 3, 1, 2) for n in "xw")
    bias = torch.from_numpy(feed["b"]).double()
    y = torch.nn.functional.conv2d(x, w, bias, stride, w.shape[2] // 2).permute(0, 2, 3, 1)
    if "z" in feed:
        y = y + torch.from_numpy(feed["z"]).double()
    return (y.relu() if relu else y).numpy()


@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("relu", (False, True))
def test_equals_double_precision(relu: bool, residual: bool) -> None:
    for case in CASES:
        runner, feed = session(*case, relu, residual)
        expected = truth(feed, case[-1], relu)
        for _ in range(2):
            (got,) = runner.run(None, feed)
            assert got.shape == expected.shape
            # Half of a unit in the last place of the result, and sums kept in float32.
            np.testing.assert_allclose(got, expected, rtol=1.5e-3, atol=2e-3)


def test_another_shape_of_the_same_session() -> None:
    """Descriptors and workspace follow the input."""
    runner, feed = session(*CASES[1], True, False)
    for n, h in ((1, 20), (6, 64), (2, 7)):
        smaller = {**feed, "x": np.ascontiguousarray(feed["x"][:n, :h])}
        (got,) = runner.run(None, smaller)
        np.testing.assert_allclose(got, truth(smaller, 1, True), rtol=1.5e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"x": (6, 64, 176, 32)}, "channels"),
        ({"x": (6, 64, 176)}, "four dimensions|rank"),
        ({"b": (63,)}, "one bias"),
        ({"z": (6, 64, 175, 64)}, "residual"),
        ({"x": (6, 0, 176, 64)}, "size of the input"),
    ),
)
def test_what_does_not_fit_is_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    runner, feed = session(*CASES[0], True, True)
    for name, shape in change.items():
        feed[name] = np.zeros(shape, np.float16)
    with pytest.raises(Exception, match=f"(?i){message}"):
        runner.run(None, feed)


def test_sessions_in_threads() -> None:
    """Each on its own stream; they share a library, and nothing else."""
    cases = [(CASES[i % 4], session(*CASES[i % 4], True, False)) for i in range(8)]
    expected = [runner.run(None, feed)[0] for _, (runner, feed) in cases]
    wrong: list[int] = []

    def work(number: int) -> None:
        _, (runner, feed) = cases[number]
        for _ in range(20):
            if not np.array_equal(runner.run(None, feed)[0], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "count", "message"),
    (
        ("0 4 8rn", 56, None),
        ("0 4 8rn", 63, "expected 56 parameters"),
        ("1 4 8rn", 56, "columns that the input does not have"),
        ("0 4 8x", 64, "not sound"),
        ("0 4", 64, "not sound"),
        ("", 64, "not sound"),
        ("0 4 99999999999r", 64, "not sound"),
        (";".join(["0 4 8"] * 9), 64, "not sound"),
    ),
)
def test_descriptions_of_chains(text: str, count: int, message: str | None) -> None:
    """The other operator of the domain; its values are tested in s4d-runtime."""
    helper = onnx.helper
    node = helper.make_node(
        "DenseChains", ["x", "p"], ["y"], domain="s4d.fused", branches=text, epsilon=1e-5, rank=3
    )
    sizes = {"x": (1, 19, 4), "p": (count,)}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, 1, [None] * len(s)) for n, s in sizes.items()],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("s4d.fused", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library_path("onnxruntime", "cuda"))
    rng = np.random.default_rng(0)
    feed = {n: rng.standard_normal(s).astype(np.float32) for n, s in sizes.items()}

    def result() -> np.ndarray:
        providers = ["CUDAExecutionProvider"]
        runner = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
        return runner.run(None, feed)[0]

    if message is not None:
        with pytest.raises(Exception, match=message):
            result()
        return
    x, p = feed["x"].astype(np.float64), feed["p"].astype(np.float64)
    y = np.maximum(x @ p[:32].reshape(4, 8) + p[32:40], 0)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(result(), y * p[40:48] + p[48:56], rtol=1e-5, atol=1e-5)
