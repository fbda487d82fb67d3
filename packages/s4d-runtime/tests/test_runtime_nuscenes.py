"""The reader against known geometry and against broken tables; the submission writer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runtime_dataset import PLACES, SIZES, SPEEDS

import s4d_runtime.nuscenes.tables as tables
from s4d_runtime import Detections
from s4d_runtime.errors import DatasetError, ResultsError
from s4d_runtime.geometry import invert_rigid, lidar2img
from s4d_runtime.nuscenes import (
    CLASS_RANGE,
    DETECTION_NAMES,
    NuScenes,
    SubmissionWriter,
    attribute_name,
    read_results,
)
from s4d_runtime.nuscenes.dataset import CAMERA_ORDER
from s4d_runtime.nuscenes.submission import detections_of


@pytest.fixture
def dataset(made_dataset) -> NuScenes:
    return NuScenes(made_dataset)


@pytest.fixture
def copy(made_dataset, tmp_path) -> Path:
    return Path(shutil.copytree(made_dataset, tmp_path / "copy"))


def edit(root: Path, table: str, change) -> None:
    path = root / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(change(rows)))


def test_scenes_are_in_time_order(dataset):
    assert [s.name for s in dataset.scenes] == ["scene-0000", "scene-0001"]
    for scene in dataset.scenes:
        times = [dataset.sample(t).timestamp for t in scene.samples]
        assert times == sorted(times) and len(times) == 3
    assert [s.name for s in dataset.select(["scene-0001"])] == ["scene-0001"]
    with pytest.raises(DatasetError, match="no scene scene-9"):
        dataset.select(["scene-9"])


def test_lidar2camera_goes_through_the_world(dataset):
    """The vehicle drives 2 m/s along y and the images are 20 ms late: 40 mm."""
    sample = dataset.sample(dataset.scenes[0].samples[1])
    record = sample.cameras["CAM_FRONT"]
    camera_in_lidar = invert_rigid(record.lidar2camera)[:3, 3]
    np.testing.assert_allclose(camera_in_lidar, (0, 1 + 0.04, -0.3), atol=1e-9)
    assert record.timestamp - sample.timestamp == pytest.approx(0.02, abs=1e-6)
    assert sample.lidar2global[:3, 3] == pytest.approx((101.0, 1.0, 1.8))


def test_annotations(dataset):
    """World positions seen from the moving LiDAR; velocities by neighbouring annotations."""
    for number, token in enumerate(dataset.scenes[0].samples):
        found = dataset.annotations(token)
        for i, (place, speed, size) in enumerate(zip(PLACES, SPEEDS, SIZES, strict=True)):
            x, y, z = place
            at = (x + speed[0] * number / 2, y + speed[1] * number / 2 - number, z)
            np.testing.assert_allclose(found.boxes[i, :3], at, atol=1e-9)
            np.testing.assert_allclose(found.boxes[i, 3:6], np.array(size)[[1, 0, 2]])
            np.testing.assert_allclose(found.boxes[i, 6:9], (0.4, *speed), atol=1e-9)
        assert found.labels.tolist() == [0, 3, 8, -1]
        assert found.track_ids.tolist() == [0, 1, 2, 3]
        assert found.num_points.tolist() == [8] * 4


def test_frame(dataset):
    frame = dataset.frame(dataset.scenes[0].samples[0])
    assert len(frame.images) == 6 and frame.images[0].shape == (90, 160, 3)
    only = dataset.frame(dataset.scenes[0].samples[0], ("CAM_BACK", "CAM_ROOF"))
    assert only.images[1] is None and only.cameras[1] is None and only.images[0] is not None


def test_missing_and_broken_images(copy):
    dataset = NuScenes(copy)
    sample = dataset.sample(dataset.scenes[0].samples[0])
    sample.cameras["CAM_BACK"].path.unlink()
    assert dataset.frame(sample).images[3] is None
    sample.cameras["CAM_FRONT"].path.write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(DatasetError, match="CAM_FRONT"):
        dataset.frame(sample)


@pytest.mark.parametrize(
    "table", ["scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"]
)
def test_broken_tables(copy, table):
    path = copy / "v1.0-mini" / f"{table}.json"
    text = path.read_text()
    for broken in ("", "{}", "[1]", '[{"token": "a"}]', text[:-20], "[" * 100_000, "null"):
        path.write_text(broken)
        with pytest.raises(DatasetError):
            NuScenes(copy)
    path.unlink()
    with pytest.raises(DatasetError):
        NuScenes(copy)


def test_dangling_references(copy):
    edit(copy, "ego_pose", lambda rows: rows[:1])
    dataset = NuScenes(copy)
    with pytest.raises(DatasetError, match="ego_pose"):
        dataset.sample(dataset.scenes[1].samples[2])
    edit(copy, "sample_data", lambda rows: [r for r in rows if "LIDAR" not in r["token"]])
    with pytest.raises(DatasetError, match="LIDAR_TOP"):
        NuScenes(copy).sample(dataset.scenes[0].samples[0])
    with pytest.raises(DatasetError, match="no sample"):
        dataset.sample("nothing")


def test_no_data_set_and_two_versions(copy, tmp_path):
    with pytest.raises(DatasetError, match="found none"):
        NuScenes(tmp_path / "nowhere")
    shutil.copytree(copy / "v1.0-mini", copy / "v1.0-test")
    with pytest.raises(DatasetError, match="name the version"):
        NuScenes(copy)
    assert len(NuScenes(copy, "v1.0-test").scenes) == 2
    with pytest.raises(DatasetError, match=r"v1\.0-x"):
        NuScenes(copy, "v1.0-x")


def test_large_tables_are_read_in_pieces(tmp_path, monkeypatch):
    """Pieces end between objects, also where strings or inner objects look like an end."""
    monkeypatch.setattr(tables, "PIECE", 300)
    rows = [
        {"token": f"t{i}", "name": '}, {"' * (i % 7), "inner": {"a": [{"b": "}"}]}, "x": "y" * i}
        for i in range(200)
    ]
    for indent in (None, 2):
        path = tmp_path / "category.json"
        path.write_text(json.dumps(rows, indent=indent) + "\n")
        found = tables.read_table(path, tables.NamedRow)
        assert [(r.token, r.name) for r in found] == [(r["token"], r["name"]) for r in rows]
        kept = tables.read_table(path, tables.NamedRow, lambda r: r.token.endswith("7"))
        assert len(kept) == 20
        path.write_text(path.read_text()[:-200])
        with pytest.raises(DatasetError):
            tables.read_table(path, tables.NamedRow)


def test_keyframe(keyframe):
    """The real keyframe: 68 objects; each that a camera sees projects into its picture."""
    dataset = NuScenes(keyframe)
    sample = dataset.sample(dataset.scenes[0].samples[0])
    objects = dataset.annotations(sample)
    assert len(objects) == 68 and tuple(sample.cameras) == CAMERA_ORDER
    seen = np.zeros(68, dtype=bool)
    for record in sample.cameras.values():
        centres = np.c_[objects.boxes[:, :3], np.ones(68)]
        u, v, depth, _ = lidar2img(record.intrinsic, record.lidar2camera) @ centres.T
        pixels = np.stack((u, v), axis=1) / depth[:, None]
        seen |= (depth > 0) & ((pixels > 0) & (pixels < (1600, 900))).all(axis=1)
    assert seen.sum() >= 60
    frame = dataset.frame(sample)
    assert {i.shape for i in frame.images} == {(900, 1600, 3)}


def detections(boxes, labels, scores=None, ids=None) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 10),
        np.array(scores if scores is not None else np.linspace(0.9, 0.5, count), np.float32),
        np.array(labels, np.int64),
        np.array(ids if ids is not None else range(count), np.int64),
    )


def test_results_come_back(dataset, tmp_path):
    """Annotations written as results and read again are the same boxes."""
    with SubmissionWriter(tmp_path, DETECTION_NAMES) as writer:
        for scene in dataset.scenes:
            for token in scene.samples:
                sample = dataset.sample(token)
                known = dataset.annotations(sample)
                keep = known.labels >= 0
                boxes = known.boxes[keep]
                writer.add(sample, detections(boxes, known.labels[keep], ids=known.track_ids[keep]))
    assert (writer.samples, writer.boxes, writer.tracked_boxes) == (6, 18, 18)
    for path in (writer.detection_path, writer.tracking_path):
        results = read_results(path)
        assert len(results) == 6
        sample = dataset.sample(dataset.scenes[1].samples[1])
        back = detections_of(results[sample.token], sample)
        known = dataset.annotations(sample)
        np.testing.assert_allclose(back.boxes, known.boxes[:3], atol=2e-6)
        assert back.labels.tolist() == [0, 3, 8]
        if path == writer.tracking_path:
            assert back.track_ids.tolist() == known.track_ids[:3].tolist()
    meta = json.loads(writer.detection_path.read_text())["meta"]
    assert meta["use_camera"] is True and meta["use_lidar"] is False


def test_what_is_left_out(dataset, tmp_path):
    """Ranges are around the ego vehicle, not the LiDAR; three classes are not tracked."""
    sample = dataset.sample(dataset.scenes[0].samples[0])  # the LiDAR is 1 m along x from the ego
    rows, labels = [], []
    for name, reach in CLASS_RANGE.items():
        for x in (reach - 1.01, reach - 0.99):
            rows.append([x, 0, 0, 4, 2, 1.5, 0, 0, 0, 0])
            labels.append(DETECTION_NAMES.index(name))
    low = detections([[5, 0, 0, 4, 2, 1, 0, 0, 0, 0]] * 2, [0, 0], [0.21, 0.19], [7, 8])
    with SubmissionWriter(tmp_path, DETECTION_NAMES) as writer:
        writer.add(sample, detections(rows, labels))
        writer.add(dataset.sample(dataset.scenes[0].samples[1]), low)
        writer.add(dataset.sample(dataset.scenes[0].samples[2]), None)
        with pytest.raises(ResultsError, match="twice"):
            writer.add(sample, None)
    detected, tracked = read_results(writer.detection_path), read_results(writer.tracking_path)
    names = [e["detection_name"] for e in detected[sample.token]]
    assert sorted(names) == sorted(DETECTION_NAMES)
    assert {e["tracking_name"] for e in tracked[sample.token]} == {*DETECTION_NAMES} - {
        "barrier",
        "traffic_cone",
        "construction_vehicle",
    }
    assert [e["tracking_id"] for e in tracked[dataset.scenes[0].samples[1]]] == ["7"]
    assert len(detected[dataset.scenes[0].samples[1]]) == 2
    assert detected[dataset.scenes[0].samples[2]] == []


def test_no_files_after_an_error(dataset, tmp_path):
    sample = dataset.sample(dataset.scenes[0].samples[0])
    with pytest.raises(RuntimeError), SubmissionWriter(tmp_path / "r", DETECTION_NAMES) as writer:
        writer.add(sample, None)
        raise RuntimeError
    assert list((tmp_path / "r").iterdir()) == []


def test_rotation_is_right_for_any_pose(dataset, tmp_path):
    """A rolled, pitched and turned vehicle: every branch of the matrix-to-quaternion formula."""
    from dataclasses import replace

    from s4d_runtime.geometry import quaternion_to_matrix, transform

    rng = np.random.default_rng(1)
    for number in range(40):
        q = rng.standard_normal(4)
        pose = transform(q / np.linalg.norm(q), rng.normal(0, 100, 3))
        sample = replace(
            dataset.sample(dataset.scenes[0].samples[0]), ego2global=pose, lidar2ego=np.eye(4)
        )
        box = [5, 6, 1, 4, 2, 1.5, 0.3 * number, 1, 2, 0]
        with SubmissionWriter(tmp_path, DETECTION_NAMES) as writer:
            writer.add(sample, detections([box], [0]))
        (entry,) = read_results(writer.detection_path)[sample.token]
        yaw = np.array(
            [[np.cos(box[6]), -np.sin(box[6]), 0], [np.sin(box[6]), np.cos(box[6]), 0], [0, 0, 1]]
        )
        expected = pose[:3, :3] @ yaw
        np.testing.assert_allclose(quaternion_to_matrix(entry["rotation"]), expected, atol=1e-6)
        assert entry["size"] == [2, 4, 1.5]


@pytest.mark.parametrize(
    ("name", "moving", "resting"),
    [
        ("car", "vehicle.moving", "vehicle.parked"),
        ("truck", "vehicle.moving", "vehicle.parked"),
        ("construction_vehicle", "vehicle.moving", "vehicle.parked"),
        ("trailer", "vehicle.moving", "vehicle.parked"),
        ("bus", "vehicle.moving", "vehicle.stopped"),
        ("bicycle", "cycle.with_rider", "cycle.without_rider"),
        ("motorcycle", "cycle.with_rider", "cycle.without_rider"),
        ("pedestrian", "pedestrian.moving", "pedestrian.standing"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes(name, moving, resting):
    assert (attribute_name(name, 0.21), attribute_name(name, 0.2)) == (moving, resting)


def test_broken_results(tmp_path, dataset):
    path = tmp_path / "r.json"
    for content in ("", "[]", '{"results": [1]}', '{"results": {"a": {}}}'):
        path.write_text(content)
        with pytest.raises(ResultsError):
            read_results(path)
    with pytest.raises(ResultsError, match="cannot read"):
        read_results(tmp_path / "none.json")
    sample = dataset.sample(dataset.scenes[0].samples[0])
    for entry in ({}, {"detection_name": "ufo"}, {"tracking_name": "car", "rotation": [0] * 4}):
        with pytest.raises(ResultsError):
            detections_of([entry], sample)
