"""Pictures turned first: the same bits, and no change where they take another way."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from s4d_runtime.backends.planar_pictures import turn_pictures_first

SHAPE = (2, 5, 7, 3)


def model(perm=(0, 1, 4, 2, 3), second_reader=False, mean=(0.5, 10.0, 99.0), axis=0) -> bytes:
    """Normalisation as s4d-export writes it, then something that mixes channels."""
    constants = {
        "axis": np.array([axis], np.int64),
        "mean": np.array(mean, np.float32),
        "deviation": np.array([58.4, 57.1, 57.4], np.float32),
        "scale": np.array(1.7, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["x", "axis"], ["batch"]),
        helper.make_node("Sub", ["batch", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["divided"]),
        helper.make_node("Mul", ["divided", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=perm),
        helper.make_node("Neg", ["turned"], ["out"]),
    ]
    if second_reader:
        nodes.append(helper.make_node("Abs", ["centred"], ["other"]))
    outputs = ["out", "other"] if second_reader else ["out"]
    graph = helper.make_graph(
        nodes,
        "pictures",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, SHAPE)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def run(data: bytes) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pictures})[0]


def test_same_bits():
    before = model()
    after = turn_pictures_first(before)
    kinds = [node.op_type for node in onnx.load_from_string(after).graph.node]
    assert kinds == ["Transpose", "Cast", "Unsqueeze", "Sub", "Div", "Mul", "Neg"]
    np.testing.assert_array_equal(run(after), run(before))


@pytest.mark.parametrize(
    "other",
    (
        {"perm": (0, 1, 2, 4, 3)},
        {"second_reader": True},
        {"mean": np.ones((7, 3)).tolist()},
        {"axis": 4, "mean": (1.0,)},
    ),
    ids=str,
)
def test_another_way_stays(other):
    assert turn_pictures_first(model(**other)) == model(**other)


def test_damaged_models_stay():
    whole = model()
    rng = np.random.default_rng(3)
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        turn_pictures_first(bytes(data[: rng.integers(1, len(data))]))
        turn_pictures_first(bytes(data))
    assert turn_pictures_first(b"") == b""
