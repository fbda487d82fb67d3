"""`verify` passes a sound graph in every precision, and fails it when something in it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from s4d_core import load_checkpoint
from s4d_export import (
    build_manifest,
    calibrate,
    export_graph,
    find_points,
    random_frames,
    save_artifact,
    to_half,
    to_int8,
    verify,
)
from s4d_export.verification.report import format_result
from s4d_export.verification.rollout import Recorded, TorchRunner
from s4d_export.verification.tracks import TRACK_LIMITS, TrackComparison

FRAMES = 5  # the third comes after a gap, the fourth after a reset; two see the vehicle move
DEMO = Path(__file__).parents[3] / "demo" / "sparse4dv3_tiny"
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")


@pytest.fixture(scope="module")
def model():
    """Trained: in drawn weights, much of a graph hardly matters, and eight bits hide the rest."""
    if not DEMO.is_dir():
        pytest.skip("the demo checkpoint is not beside the packages")
    return load_checkpoint(DEMO)


@pytest.fixture(scope="module")
def frames(model):
    return list(random_frames(model.config, FRAMES))


@pytest.fixture(scope="module")
def reference(model, frames):
    return Recorded(TorchRunner(model), frames)


@pytest.fixture(scope="module")
def graphs(model, frames):
    plain = export_graph(model)
    tensors = [point.tensor for point in find_points(plain)]
    calibration = calibrate(plain, tensors, model.config, [frame.images for frame in frames[:2]])
    half = to_half(plain)
    return {
        "fp32": plain,
        "fp16": half,
        "int8": to_int8(plain, calibration),
        "int8+fp16": to_int8(half, calibration, reference=plain),
    }


def judged(model, reference, frames, graph, precision, folder):
    path = folder / "a.s4d"
    kind = precision.split("+")[0]
    save_artifact(path, graph, build_manifest(model.config, "a", "plugin", kind))
    reference.rewind()
    result = verify(model, path, frames, "onnxruntime-cpu", 1, reference=reference)
    print(format_result(result))
    return result


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sound_graph_passes(model, reference, frames, graphs, precision, tmp_path):
    result = judged(model, reference, frames, graphs[precision], precision, tmp_path)
    assert result["passed"], result["reasons"]
    # What the engine does wrong in one step is less than what its own state makes of it.
    step, free = (result[part]["tensors"]["next_feature"]["mean"] for part in ("step", "rollout"))
    assert step <= free


def weight_of(graph, name):
    """The constant that scales a node's weights, whatever their precision."""
    node = next(node for node in graph.node if node.name == name)
    constants = {value.name: value for value in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    for source in node.input:
        if source in constants and len(constants[source].dims) > 1:
            return constants[source]
        maker = makers.get(source)
        dequantised = maker is not None and maker.op_type == "DequantizeLinear"
        if dequantised and maker.input[0] in constants:
            return constants[maker.input[1]]
    raise AssertionError(f"{name} has no weight")


def change(constant, how):
    value = numpy_helper.to_array(constant)
    new = np.asarray(how(value), value.dtype)
    constant.CopyFrom(numpy_helper.from_array(new, constant.name))


def through(graph, name, operator, *constants, **attributes):
    """Everything reads `operator` of the graph's input instead of the input."""
    for node in graph.node:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = f"{name}.wrong"
    given = []
    for number, value in enumerate(constants):
        given.append(f"{name}.constant{number}")
        graph.initializer.append(numpy_helper.from_array(value, given[-1]))
    node = helper.make_node(operator, [name, *given], [f"{name}.wrong"], **attributes)
    node.name = f"graph/{name}.wrong"
    graph.node.insert(0, node)


def reversed_rows(graph, name):
    size = next(v for v in graph.input if v.name == name).type.tensor_type.shape.dim[0].dim_value
    through(graph, name, "Gather", np.arange(size)[::-1].copy(), axis=0)


def convolution(graph):
    change(weight_of(graph, "backbone.layer3.0.conv2/Conv"), lambda w: 1.5 * w)


def linear(graph):
    name = next(
        n.name
        for n in graph.node
        if n.name.startswith("head.layers.1.ffn") and n.op_type in ("MatMul", "Gemm")
    )
    change(weight_of(graph, name), lambda w: w[::-1])


def bias(graph):
    node = next(n for n in graph.node if n.name == "backbone.conv1/Conv")
    change(next(v for v in graph.initializer if v.name == node.input[2]), np.zeros_like)


def camera(graph):
    through(graph, "images", "Gather", np.array([1, 0, 2, 3, 4, 5]), axis=0)


def state(graph):
    reversed_rows(graph, "state_feature")


def ids(graph):
    reversed_rows(graph, "state_track_id")


def counter(graph):
    through(graph, "state_id_counter", "Add", np.array([1], np.int32))


def reset(graph):
    through(graph, "state_valid", "Max", np.array([1], np.int32))


def motion(graph):
    """As if the vehicle went the other way."""
    through(graph, "prev_to_current", "MatMul", np.diag([1, 1, 1, -1]).astype(np.float32))


SHORT = (convolution, linear, state, reset)  # in the precisions that mix what the others have
WRONG = (*SHORT, bias, camera, ids, counter, motion)
CASES = [(p, doctor) for p in PRECISIONS for doctor in (WRONG if p in ("fp32", "int8") else SHORT)]


@pytest.mark.parametrize(
    ("precision", "doctor"), CASES, ids=[f"{p}-{doctor.__name__}" for p, doctor in CASES]
)
def test_a_wrong_graph_fails(model, reference, frames, graphs, doctor, precision, tmp_path):
    graph = onnx.ModelProto()
    graph.CopyFrom(graphs[precision])
    doctor(graph.graph)
    result = judged(model, reference, frames, graph, precision, tmp_path)
    assert not result["passed"]
    assert result["step"]["reasons"], "the strict part must see it"


def test_an_engine_that_forgets_its_state_fails(model, reference, frames, graphs, tmp_path):
    """Right step by step, wrong in the long run: the free roll-out is there for this."""
    from s4d_export.verification import rollout

    class Forgetful(rollout.EngineRunner):
        def step(self, frame, state=None):
            if state is None:
                self._engine.clear_state()
            return super().step(frame, state)

    from s4d_export.verification import runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "EngineRunner", Forgetful)
        result = judged(model, reference, frames, graphs["fp32"], "fp32", tmp_path)
    assert result["step"]["passed"] and not result["rollout"]["passed"]


def detections(places, scores=None, ids=None, labels=None):
    count = len(places)
    boxes = np.zeros((count, 10), np.float32)
    boxes[:, 0] = places
    return {
        "boxes": boxes,
        "scores": np.full(count, 0.9, np.float32) if scores is None else np.float32(scores),
        "labels": np.zeros(count, np.int32) if labels is None else np.int32(labels),
        "track_ids": np.arange(count) if ids is None else np.asarray(ids),
    }


def compared(*frames, precision="fp16"):
    comparison = TrackComparison(TRACK_LIMITS[precision])
    for expected, got in frames:
        comparison.add(expected, got)
    return comparison.result()


def test_objects_are_found_again_by_place_and_class():
    places = np.arange(0, 100, 10)
    same = detections(places)
    moved = detections(places[::-1] + 0.05, ids=np.arange(10)[::-1])
    result = compared((same, moved))
    assert result["passed"] and result["judged"] == 10 and result["switches"] == 0
    assert result["place"] == pytest.approx(0.05, rel=1e-3)
    assert not compared((same, detections(places + 0.5)))["passed"]  # too far on average
    gone = compared((same, detections(places[:5])))
    assert (gone["lost"], gone["added"], gone["passed"]) == (5, 0, False)
    new = compared((detections(places[:5]), same))
    assert (new["lost"], new["added"], new["passed"]) == (0, 5, False)
    assert compared((same, detections(places, labels=np.ones(10))))["lost"] == 10
    assert not compared((same, detections(places, scores=np.full(10, 0.8))))["passed"]
    assert not compared((same, detections(np.full(10, np.nan))))["passed"]


def test_weak_detections_count_only_where_there_are_no_better_ones():
    places = np.arange(0, 300, 10)
    scores = np.linspace(0.5, 0.01, 30)
    strong = int((scores >= 0.2).sum())
    known = detections(places, scores)
    result = compared((known, detections(places[:strong], scores[:strong])))
    assert result["passed"] and result["judged"] == strong
    weak = detections(places, scores / 10)
    assert compared((weak, weak))["judged"] == 10
    assert compared((weak, {**weak, "labels": np.ones(30, np.int32)}))["lost"] == 0


def test_an_exchanged_id_counts_once_and_ids_start_anew_after_a_reset():
    places = np.arange(0, 100, 10)
    other = np.r_[1, 0, 2:10]
    same = detections(places), detections(places)
    swapped = detections(places), detections(places, ids=other)
    assert compared(swapped, swapped)["switches"] == 0  # one naming, kept
    result = compared(same, swapped, swapped)
    assert result["switches"] == 2
    assert not compared(*[same, swapped] * 4)["passed"]
    comparison = TrackComparison(TRACK_LIMITS["fp32"])
    comparison.add(*same)
    comparison.reset()
    comparison.add(*swapped)
    assert comparison.result()["switches"] == 0
