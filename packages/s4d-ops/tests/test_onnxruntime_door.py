"""The ONNX Runtime door on the CPU provider."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, GOLDEN, Case, error, forward, golden_case

from s4d_ops import MissingLibraryError, library_path

onnx = pytest.importorskip("onnx", reason="models are made with onnx")
ort = pytest.importorskip("onnxruntime", reason="the door needs onnxruntime")

try:
    LIBRARY = library_path("onnxruntime")
except MissingLibraryError as missing:
    pytest.skip(f"ONNX Runtime door not built: {missing}", allow_module_level=True)

NODES = [("s4d", "DeformableAggregation"), ("custom", "DeformableAttentionAggrPlugin")]
NAMES = ("features", "spatial_shapes", "level_start_index", "sampling_locations", "weights")


def session(case: Case, node=NODES[0], threads=2, **attributes):
    """A model of one node; types are those of the case's arrays, sizes are left open."""
    domain, name = node
    types = [onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for v in case.inputs]
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, NAMES, ["out"], domain=domain, **attributes)],
        "one_node",
        [make(n, t, [None] * v.ndim) for n, t, v in zip(NAMES, types, case.inputs, strict=True)],
        [make("out", types[0], [None] * 3)],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(domain, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(LIBRARY)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(case: Case, **keywords):
    feeds = dict(zip(NAMES, case.inputs, strict=True))
    return session(case, **keywords).run(None, feeds)[0]


@pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden data")
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_golden(variant, node):
    case, expected = golden_case(variant)
    assert error(run(case, node=node), expected["out"]) <= 1e-6


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(np.float32, 1e-6), (np.float64, 1e-12), (np.float16, 2e-3)]
)
@pytest.mark.parametrize("name", list(CASES))
def test_table(name, dtype, limit, index):
    case = CASES[name].cast(dtype, index)
    out = run(case)
    assert out.dtype == dtype
    assert error(out, forward(case)) <= limit


def test_half_features_with_float_locations():
    case = CASES["model_like"]
    half = case.cast(np.float16)
    mixed = Case(half.features, *case.inputs[1:], case.grad_output)
    out = run(mixed)
    assert out.dtype == np.float16
    assert error(out, forward(mixed)) <= 2e-3


def test_attributes_of_tensorrt_are_tolerated():
    case = CASES["small"]
    out = run(case, plugin_version="1", plugin_namespace="")
    assert error(out, forward(case)) <= 1e-6


def test_the_same_bits_for_any_number_of_threads():
    case = CASES["model_width"]
    one = run(case, threads=1)
    assert all(np.array_equal(one, run(case, threads=n)) for n in (2, 3))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("features", np.zeros((4, 4), np.float32), "features"),
        ("features", np.zeros((9, 320, 8), np.float32), "B=9"),
        ("spatial_shapes", np.full((2, 2, 2), 2**40), "does not lie inside"),
        ("spatial_shapes", np.zeros((2, 2, 3), np.int64), "spatial_shapes"),
        ("level_start_index", np.full((2, 2), -1), "does not lie inside"),
        ("level_start_index", np.zeros((1, 2), np.int64), "level_start_index"),
        ("sampling_locations", np.zeros((2, 5, 3, 2, 3), np.float32), "sampling_locations"),
        ("weights", np.zeros((2, 5, 3, 2, 2, 0), np.float32), "groups"),
        ("weights", np.zeros((2, 5, 3, 2, 2, 3), np.float32), "groups"),
        ("weights", np.zeros((2, 5, 3, 2, 9, 2), np.float32), "weights"),
    ],
)
def test_wrong_shapes_are_exceptions(name, value, words):
    """The session reports them and serves the next call."""
    case = CASES["small"]
    one = session(case)
    # Free ranks would need another model: wrong ranks are refused by the runtime itself.
    feeds = dict(zip(NAMES, case.inputs, strict=True))
    with pytest.raises(Exception, match=f"(?s){words}|Invalid rank"):
        one.run(None, {**feeds, name: value})
    assert error(one.run(None, feeds)[0], forward(case)) <= 1e-6


def test_types_that_no_kernel_takes_are_refused_at_load():
    case = CASES["small"]
    mixed = Case(case.features, *case.cast(np.float64).inputs[1:], case.grad_output)
    with pytest.raises(Exception, match="DeformableAggregation"):
        session(mixed)


def test_many_sessions_one_registration():
    case = CASES["small"]
    sessions = [session(case) for _ in range(5)]
    del sessions[:3]
    assert error(run(case), forward(case)) <= 1e-6


@pytest.mark.skipif(
    "S4D_ORT_INCLUDE_DIR" not in os.environ or shutil.which("c++") is None,
    reason="set S4D_ORT_INCLUDE_DIR to a folder with onnxruntime_c_api.h",
)
def test_declarations_equal_the_real_header(tmp_path):
    """Every position and layout that we declare, against the header, at compile time."""
    root = Path(__file__).parent
    subprocess.run(
        [
            "c++",
            "-std=c++17",
            "-fsyntax-only",
            f"-I{os.environ['S4D_ORT_INCLUDE_DIR']}",
            f"-I{root.parent / 'csrc' / 'onnxruntime'}",
            str(root / "native" / "check_ort_abi.cpp"),
        ],
        check=True,
    )
