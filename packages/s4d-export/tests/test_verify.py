"""What runs is what was trained: roll-outs, row matching, verdicts."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from s4d_export import (
    VerificationError,
    build_manifest,
    nuscenes_frames,
    random_frames,
    save_artifact,
    verify,
)
from s4d_export.frames import frame_inputs, timeline
from s4d_export.verification.comparison import TOLERANCES, Comparison
from s4d_export.verification.matching import Rows, match_rows
from s4d_export.verification.report import format_result
from s4d_export.verification.rollout import TorchRunner
from s4d_runtime.artifact import read_artifact


@pytest.mark.parametrize("op", ["plugin", "standard"])
def test_eight_frames_with_gap_and_reset(exported, op):
    result = verify(exported.model, exported.artifacts[op], random_frames(exported.model.config, 8))
    print(format_result(result))
    assert result["passed"], result["reasons"]
    step, free = result["step"], result["rollout"]
    assert result["frames"] == 8 and step["unmatched"] == 0
    for tensors, limit in ((step["tensors"], 1e-5), (free["tensors"], 1e-4)):
        assert tensors["boxes"]["max"] <= 1e-3
        assert tensors["boxes"]["p99.9"] <= limit
        assert tensors["next_feature"]["cosine"] > 1 - 1e-6
    assert step["ids"]["wrong"] == 0
    assert step["ids"]["equal"] > 0.98 * sum(step["ids"].values())
    assert free["judged"] >= 80 and free["lost"] == free["added"] == free["switches"] == 0


def test_the_sequence_has_motion_a_gap_and_a_reset(exported):
    limit = exported.model.config.max_time_interval
    moments = timeline(8, limit)
    steps = np.diff([m.timestamp for m in moments])
    assert (steps > limit).sum() == 1 and [m.reset for m in moments].count(True) == 1
    frames = list(random_frames(exported.model.config, 8))
    valid = [
        int(frame_inputs(f, before)["state_valid"][0])
        for f, before in zip(frames, [None, *frames[:-1]], strict=True)
    ]
    assert valid == [0, 1, 1, 1, 1, 1, 0, 1]  # the gap is left to the graph's own rule
    moved = frame_inputs(frames[1], frames[0])["prev_to_current"]
    assert moved[0, 3] < -2.0 and abs(moved[0, 1]) > 0.01
    assert np.array_equal(frames[3].images, list(random_frames(exported.model.config, 4))[3].images)


def test_a_doctored_artifact_fails(exported, tmp_path):
    with read_artifact(exported.artifacts["plugin"]) as opened:
        model = onnx.load_model_from_string(opened.read("model.onnx"))
    weight = next(v for v in model.graph.initializer if v.name == "backbone.conv1.weight")
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.02), weight.name)
    )
    config = exported.model.config
    path = tmp_path / "doctored.s4d"
    save_artifact(path, model, build_manifest(config, "doctored", "plugin", "fp32"))
    result = verify(exported.model, path, random_frames(config, 3))
    assert not result["passed"] and "boxes" in result["reasons"][0]
    assert result["rollout"]["tensors"].keys() == result["step"]["tensors"].keys()
    assert "FAILED" in format_result(result)
    json.dumps(result)


def test_artifact_of_another_model_is_refused(exported, tmp_path):
    with read_artifact(exported.artifacts["plugin"]) as opened:
        model = onnx.load_model_from_string(opened.read("model.onnx"))
    other = exported.model.config.replace(confidence_decay=0.5)
    save_artifact(tmp_path / "other.s4d", model, build_manifest(other, "other", "plugin", "fp32"))
    with pytest.raises(VerificationError, match="confidence_decay"):
        verify(exported.model, tmp_path / "other.s4d", random_frames(other, 1))


def test_images_of_a_data_set(exported, keyframe):
    frames = list(nuscenes_frames(exported.model.config, keyframe, 4))
    assert frames[0].images.shape == (6, 64, 176, 3) and frames[0].images.std() > 20
    assert not np.array_equal(frames[0].images, frames[1].images)  # one sample, shifted
    # The projection has the scale of the network input: a point ahead lands in the front image.
    point = frames[0].lidar2img[0] @ np.array([0.0, 20.0, 0.0, 1.0])
    u, v = point[:2] / point[2]
    assert point[2] > 0 and 0 < u < 176 and 0 < v < 64
    result = verify(exported.model, exported.artifacts["plugin"], frames)
    assert result["passed"], result["reasons"]


def test_data_set_without_a_camera_is_refused(exported, keyframe):
    names = ("CAM_ROOF", *exported.model.config.camera_names[1:])
    with pytest.raises(VerificationError, match="CAM_ROOF"):
        next(nuscenes_frames(exported.model.config.replace(camera_names=names), keyframe, 1))


def _rows(place, score, ids, label=None):
    ids = np.asarray(ids)
    return Rows(
        np.asarray(place, float),
        np.asarray(score, float),
        np.zeros_like(ids) if label is None else np.asarray(label),
        ids,
    )


def test_rows_are_matched_by_identity_not_by_order():
    places = np.random.default_rng(0).normal(size=(20, 10)) * 10
    order = np.random.default_rng(1).permutation(20)
    a = _rows(places, np.linspace(1, 0.1, 20), np.arange(20))
    b = _rows(places[order] + 1e-5, np.linspace(1, 0.1, 20)[order], np.arange(20)[order])
    match = match_rows(a, b, 1e-2)
    assert np.array_equal(order[match.second], match.first) and len(match.first) == 20


def test_a_tie_that_swaps_ids_is_a_renaming_and_a_later_change_is_wrong():
    boxes = np.zeros((3, 10), np.float32)
    boxes[:, 0] = [0, 10, 20]

    def frame(ids):
        return {
            "boxes": boxes,
            "scores": np.array([0.9, 0.5, 0.5], np.float32),
            "labels": np.zeros(3, np.int32),
            "track_ids": np.array(ids, np.int32),
        }

    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(frame([0, 1, 2]), frame([0, 2, 1]))
    comparison.add(frame([0, 1, 2]), frame([0, 2, 1]))
    assert comparison.result()["ids"] == {"equal": 2, "renamed": 4, "wrong": 0}
    assert comparison.result()["passed"]
    comparison.add(frame([0, 1, 2]), frame([0, 1, 2]))
    assert comparison.result()["ids"]["wrong"] == 2
    assert not comparison.result()["passed"]
    comparison.reset()
    comparison.add(frame([0, 1, 2]), frame([0, 1, 2]))
    assert comparison.result()["ids"]["wrong"] == 2


def test_a_gross_error_is_seen_and_nan_fails():
    def frame(x):
        boxes = np.zeros((2, 10), np.float32)
        boxes[1, 0] = x
        return {
            "boxes": boxes,
            "scores": np.array([0.9, 0.5], np.float32),
            "labels": np.zeros(2, np.int32),
            "track_ids": np.arange(2, dtype=np.int32),
        }

    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(frame(1.0), frame(7.0))
    result = comparison.result()
    assert result["tensors"]["boxes"]["max"] == 6.0 and not result["passed"]
    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(frame(1.0), frame(np.nan))
    assert "an output is not finite" in comparison.result()["reasons"]


def test_yaw_is_compared_on_the_circle():
    a = {
        "boxes": np.zeros((1, 10), np.float32),
        "scores": np.ones(1, np.float32),
        "labels": np.zeros(1, np.int32),
        "track_ids": np.zeros(1, np.int32),
    }
    b = {**a, "boxes": a["boxes"].copy()}
    a["boxes"][0, 6], b["boxes"][0, 6] = np.pi, -np.pi
    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(a, b)
    assert comparison.result()["tensors"]["boxes"]["max"] < 1e-6


def _cut_frame(listed, ids=None):
    """Detections out of five instances whose class scores end in a tie; the last is far below."""
    place = np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 10), np.float32)
    fused = np.array([0.5, 0.2, 0.3, 0.4, 0.01], np.float32)
    values = np.array([0.9, 0.8, 0.6, 0.6 - 1e-7, 0.1], np.float32)
    rows = np.array(sorted(listed, key=lambda row: -fused[row]))
    numbers = np.arange(5, dtype=np.int32)
    return {
        "boxes": place[rows],
        "scores": fused[rows],
        "labels": np.zeros(len(rows), np.int32),
        "track_ids": numbers[rows],
        "cut.listed": values[rows],
        "cut.label_lead": np.where(rows == 1, np.float32(1e-7), np.float32(0.2)),
        "cut.boxes": place,
        "cut.scores": fused,
        "cut.labels": np.zeros(5, np.int64),
        "cut.track_ids": numbers,
        "cut.values": values,
        "cut.joined": numbers[:0],
        "cut.joined_lead": fused[:0],
    }


def test_a_tie_at_the_cut_by_class_score_is_no_error_and_a_wrong_choice_is():
    expected = _cut_frame([0, 1, 2])
    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(expected, _cut_frame([0, 1, 3]))  # 3 ties with 2, though its score is higher
    result = comparison.result()
    assert result["passed"] and result["ties_at_the_cut"] == 2 and result["unmatched"] == 0
    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(expected, _cut_frame([0, 1, 4]))  # 4 is no rival: 2 tied, but not with it
    assert comparison.result()["unmatched"] == 1 and not comparison.result()["passed"]
    comparison = Comparison(TOLERANCES["fp32"])
    comparison.add(expected, _cut_frame([0, 2, 3]))  # 1 was far from the cut
    assert comparison.result()["unmatched"] == 1


def test_a_label_is_wrong_only_where_one_class_was_ahead():
    for row, wrong in ((1, 0), (0, 1)):
        got = _cut_frame([0, 1, 2])
        got["labels"][got["track_ids"] == row] = 3
        comparison = Comparison(TOLERANCES["fp32"])
        comparison.add(_cut_frame([0, 1, 2]), got)
        assert comparison.result()["labels_wrong"] == wrong


def test_an_instance_that_a_tie_exchanged_stays_exchanged():
    def frame(places, ids, confidence):
        count = len(ids)
        state = np.zeros((count, 11), np.float32)
        state[:, 0] = places
        return {
            "boxes": state[:1, :10],
            "scores": np.array([0.9], np.float32),
            "labels": np.zeros(1, np.int32),
            "track_ids": np.array(ids[:1], np.int32),
            "next_anchor": state,
            "next_feature": np.zeros((count, 4), np.float32),
            "next_confidence": np.array(confidence, np.float32),
            "next_track_id": np.array(ids, np.int32),
            "next_id_counter": np.array([9], np.int32),
        }

    comparison = Comparison(TOLERANCES["fp32"])
    tie = (
        frame([0, 5, 10], [1, 2, 3], [0.9, 0.5, 0.3]),
        frame([0, 5, 20], [1, 2, 4], [0.9, 0.5, 0.3]),
    )
    comparison.add(*tie)
    # Later its confidence is anything; only this instance is excused.
    comparison.add(
        frame([0, 10, 5], [1, 3, 2], [0.9, 0.7, 0.5]), frame([0, 5, 20], [1, 2, 4], [0.9, 0.5, 0.1])
    )
    result = comparison.result()
    assert result["passed"] and result["ties_at_the_cut"] == 4, result["reasons"]
    comparison.reset()
    comparison.add(
        frame([0, 10, 5], [1, 3, 2], [0.9, 0.7, 0.5]), frame([0, 5, 20], [1, 2, 4], [0.9, 0.5, 0.1])
    )
    assert comparison.result()["unmatched"] == 1


def test_what_the_reference_tells_about_its_cuts(exported):
    frames = list(random_frames(exported.model.config, 4))  # the gap is in the middle
    runner = TorchRunner(exported.model)
    config = exported.model.config
    first, second = runner.step(frames[0]), runner.step(frames[1])
    assert len(first["cut.joined"]) == 0
    assert len(second["cut.joined"]) == config.num_anchors - config.num_temporal
    assert (second["cut.joined_lead"] >= 0).all()
    for frame in (first, second):
        order = np.sort(frame["cut.values"])[::-1]
        assert np.array_equal(np.sort(frame["cut.listed"])[::-1], order[: config.num_output])
        found = {int(n): row for row, n in enumerate(frame["cut.track_ids"])}
        rows = [found[int(n)] for n in frame["track_ids"]]
        assert np.array_equal(frame["cut.boxes"][rows], frame["boxes"])
        assert np.array_equal(frame["cut.values"][rows], frame["cut.listed"])
        assert (frame["cut.label_lead"] >= 0).all() and frame["cut.label_lead"].max() > 1e-3
