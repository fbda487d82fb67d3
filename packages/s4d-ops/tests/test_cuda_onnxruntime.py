"""CUDA side of the ONNX Runtime door: the node runs on the CUDA provider, on its stream."""

from __future__ import annotations

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

from cuda_cases import CASES, TOLERANCE, make_inputs, relative, truth  # noqa: E402

from s4d_ops import library_path  # noqa: E402

ELEMENT = {torch.float32: 1, torch.float16: 10}
INPUTS = ("features", "spatial_shapes", "level_start_index", "sampling_locations", "weights")


def session(inputs, names: tuple[str, str]):
    """A session of one node; it refuses to place any node on the CPU."""
    domain, op = names
    helper = onnx.helper
    elements = [ELEMENT.get(value.dtype, 6) for value in inputs]
    node = helper.make_node(
        op, INPUTS, ["output"], domain=domain, plugin_version="1", plugin_namespace=""
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, element, list(value.shape))
            for name, element, value in zip(INPUTS, elements, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("output", elements[0], None)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.register_custom_ops_library(library_path("onnxruntime", "cuda"))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CUDAExecutionProvider"]
    )


@pytest.mark.parametrize("dtype", ELEMENT, ids=str)
@pytest.mark.parametrize(
    "names",
    (("s4d", "DeformableAggregation"), ("custom", "DeformableAttentionAggrPlugin")),
    ids=lambda names: names[1],
)
def test_equals_double_precision(names: tuple[str, str], dtype: torch.dtype) -> None:
    for case in (CASES[0], CASES[2], CASES[10]):
        inputs = make_inputs(case, dtype)
        feed = {name: value.cpu().numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        runner = session(inputs, names)
        for _ in range(2):
            (output,) = runner.run(None, feed)
            assert relative(torch.from_numpy(output).cuda(), truth(inputs)) <= TOLERANCE[dtype]


def test_poisoned_device_buffers() -> None:
    inputs = make_inputs(CASES[0])
    runner = session(inputs, ("s4d", "DeformableAggregation"))
    expected = truth(inputs)
    output = torch.full(expected.shape, float("nan"), device="cuda")
    binding = runner.io_binding()
    types = {torch.float32: np.float32, torch.int32: np.int32}
    for name, value in zip(INPUTS, inputs, strict=True):
        binding.bind_input(name, "cuda", 0, types[value.dtype], value.shape, value.data_ptr())
    binding.bind_output("output", "cuda", 0, np.float32, output.shape, output.data_ptr())
    torch.cuda.synchronize()
    for _ in range(2):
        output.fill_(float("nan"))
        torch.cuda.synchronize()
        runner.run_with_iobinding(binding)
        assert relative(output, expected) <= 1e-6
