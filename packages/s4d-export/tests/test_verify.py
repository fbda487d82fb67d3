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
from s4d_export.comparison import TOLERANCES, Comparison
from s4d_export.frames import frame_inputs, timeline
from s4d_export.matching import Rows, match_rows
from s4d_export.verification import format_result
from s4d_runtime.artifact import read_artifact


@pytest.mark.parametrize("op", ["plugin", "standard"])
def test_eight_frames_with_gap_and_reset(exported, op):
    result = verify(exported.model, exported.artifacts[op], random_frames(exported.model.config, 8))
    print(format_result(result))
    assert result["passed"], result["reasons"]
    assert result["frames"] == 8 and result["unmatched"] == 0
    assert result["tensors"]["boxes"]["max"] <= 1e-3
    assert result["tensors"]["boxes"]["p99.9"] <= 1e-4
    assert result["tensors"]["next_feature"]["cosine"] > 1 - 1e-6
    assert result["ids"]["wrong"] == 0
    assert result["ids"]["equal"] > 0.98 * sum(result["ids"].values())


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
