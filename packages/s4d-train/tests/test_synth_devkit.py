"""nuscenes-devkit, unpatched, loads the synthetic data set and evaluates it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box


@pytest.fixture(scope="module")
def nusc(synth_root: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(synth_root), verbose=False)


def test_tables_hold_together(nusc: NuScenes) -> None:
    assert len(nusc.scene) == 2 and len(nusc.sample) == 12
    for sample in nusc.sample:
        assert len(sample["data"]) == 7
        for token in sample["data"].values():
            path, boxes, _ = nusc.get_sample_data(token)
            assert Path(path).is_file()
        assert boxes
    for scene in nusc.scene:
        token, count = scene["first_sample_token"], 0
        while token:
            token, count = nusc.get("sample", token)["next"], count + 1
        assert count == scene["nbr_samples"]
    # One sweep between two key frames, chained with them.
    lidar = nusc.sample[3]["data"]["LIDAR_TOP"]
    before = nusc.get("sample_data", nusc.get("sample_data", lidar)["prev"])
    assert not before["is_key_frame"] and "sweeps/" in before["filename"]
    assert (Path(nusc.dataroot) / before["filename"]).is_file()


def test_velocities_and_attributes_agree(nusc: NuScenes) -> None:
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])
        names = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        speed = float(np.hypot(*velocity[:2]))
        if np.isnan(speed) or not names:
            continue
        if names[0].endswith("moving") and annotation["prev"] and annotation["next"]:
            assert speed > 0.05
            moving += 1
        if names[0] == "vehicle.parked":
            assert speed < 1e-6
    assert moving > 5


def test_point_counts_are_real(nusc: NuScenes) -> None:
    total = 0
    for sample in nusc.sample[:4]:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            annotation = nusc.get("sample_annotation", box.token)
            box.wlh = box.wlh + 0.12  # range noise
            inside = int(points_in_box(box, points).sum())
            assert annotation["num_lidar_pts"] <= inside
            total += annotation["num_lidar_pts"]
    assert total > 500


@pytest.mark.filterwarnings("ignore")
def test_truth_as_prediction_scores_one(nusc: NuScenes, tmp_path: Path) -> None:
    results: dict[str, list[dict[str, object]]] = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] != "scene-0103":
            continue
        rows = []
        for token in sample["anns"]:
            row = nusc.get("sample_annotation", token)
            if not row["num_lidar_pts"]:  # the devkit does not count these as objects
                continue
            velocity = np.nan_to_num(nusc.box_velocity(token)[:2])
            attribute = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
            rows.append(
                {
                    "sample_token": sample["token"],
                    "translation": row["translation"],
                    "size": row["size"],
                    "rotation": row["rotation"],
                    "velocity": velocity.tolist(),
                    "detection_score": 0.9,
                    "detection_name": category_to_detection_name(row["category_name"]),
                    "attribute_name": attribute[0] if attribute else "",
                }
            )
        results[sample["token"]] = rows
    meta = {
        "use_camera": True,
        "use_lidar": False,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    evaluation = DetectionEval(
        nusc,
        config_factory("detection_cvpr_2019"),
        str(path),
        "mini_val",
        str(tmp_path / "out"),
        verbose=False,
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    assert len(present) >= 6
    for name, value in metrics.mean_dist_aps.items():
        if name in present:
            assert value == pytest.approx(1.0, abs=0.02), name
