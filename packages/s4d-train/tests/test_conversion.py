"""The converted index against the devkit, and what happens to broken data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from pyquaternion import Quaternion

from s4d_train.cli import main
from s4d_train.data import DataConfig, Draw, DriveDataset, DriveIndex
from s4d_train.data.conversion import check_files, convert
from s4d_train.errors import DataError, IndexFormatError, MissingFileError, MissingTableError


def _matrix(record: dict) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(record["rotation"]).rotation_matrix
    matrix[:3, 3] = record["translation"]
    return matrix


def _against_devkit(index: DriveIndex, root: Path) -> None:
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    assert len(index) == len(nusc.sample)
    for row in range(len(index)):
        sample = nusc.get("sample", index.token[row].decode())
        assert index.timestamp[row] == sample["timestamp"]
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        assert index.lidar_file[row].decode() == lidar["filename"]
        lidar2global = _matrix(nusc.get("ego_pose", lidar["ego_pose_token"])) @ _matrix(
            nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        )
        np.testing.assert_allclose(index.lidar2global(row), lidar2global, atol=1e-9)
        for column, name in enumerate(index.cameras):
            data = nusc.get("sample_data", sample["data"][name])
            calibrated = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
            camera2global = _matrix(nusc.get("ego_pose", data["ego_pose_token"])) @ _matrix(
                calibrated
            )
            expected = np.linalg.inv(camera2global) @ lidar2global
            np.testing.assert_allclose(index.lidar2camera[row, column], expected, atol=1e-8)
            np.testing.assert_array_equal(
                index.camera_intrinsic[row, column], calibrated["camera_intrinsic"]
            )
            assert index.camera_file[row, column].decode() == data["filename"]
            assert index.camera_timestamp[row, column] == data["timestamp"]
        rows = index.annotations(row)
        boxes = {b.token: b for b in nusc.get_sample_data(lidar["token"])[1]}
        assert rows.stop - rows.start == len(boxes) == len(sample["anns"])
        for at, token in zip(range(rows.start, rows.stop), sample["anns"], strict=True):
            box, record = boxes[token], nusc.get("sample_annotation", token)
            np.testing.assert_allclose(index.box[at, :3], box.center, atol=1e-8)
            np.testing.assert_allclose(index.box[at, 3:6], np.asarray(box.wlh)[[1, 0, 2]])
            forward = box.orientation.rotation_matrix[:, 0]
            difference = index.box[at, 6] - np.arctan2(forward[1], forward[0])
            assert abs(np.angle(np.exp(1j * difference))) < 1e-9
            velocity = nusc.box_velocity(token) @ lidar2global[:3, :3]
            np.testing.assert_allclose(index.velocity[at], velocity[:2], atol=1e-7)
            assert index.num_lidar_pts[at] == record["num_lidar_pts"]
            assert index.visibility[at] == int(record["visibility_token"])
            assert index.categories[index.category[at]] == record["category_name"]


def test_real_key_frame_against_devkit(keyframe_index: DriveIndex, keyframe_root: Path) -> None:
    _against_devkit(keyframe_index, keyframe_root)
    assert len(keyframe_index.label) == 68
    assert (keyframe_index.label >= 0).any()


def test_synthetic_drive_against_devkit(synth_index: DriveIndex, synth_root: Path) -> None:
    _against_devkit(synth_index, synth_root)
    counts = np.diff(synth_index.sweep_start)
    assert counts.tolist() == [min(10, 2 * k) for k in range(6)] * 2
    assert np.isnan(synth_index.velocity).any() or len(synth_index) == 12
    # An object keeps its number, and no number is shared between scenes.
    scene = synth_index.scene[np.repeat(np.arange(12), np.diff(synth_index.annotation_start))]
    numbers = [set(synth_index.instance[scene == k]) for k in (0, 1)]
    assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]


def test_sweeps_land_in_the_lidar_frame(synth_index: DriveIndex) -> None:
    first = int(synth_index.sweep_start[3])
    assert synth_index.sweep_timestamp[first] == synth_index.timestamp[3] - 250_000
    moved = synth_index.sweep2lidar[first + 1]  # the key frame before
    expected = np.linalg.inv(synth_index.lidar2global(3)) @ synth_index.lidar2global(2)
    np.testing.assert_allclose(moved, expected, atol=1e-9)


def test_splits_and_order(synth_index: DriveIndex) -> None:
    assert synth_index.samples("mini_train").tolist() == list(range(6))
    assert synth_index.samples("mini_val").tolist() == list(range(6, 12))
    assert len(synth_index.samples()) == 12
    with pytest.raises(DataError, match="mini_val"):
        synth_index.samples("trian")


@pytest.fixture
def broken(synth_root: Path, tmp_path: Path) -> Path:
    """A copy whose tables may be changed; its files are links."""
    root = tmp_path / "broken"
    shutil.copytree(synth_root / "v1.0-mini", root / "v1.0-mini")
    for name in ("samples", "sweeps", "maps"):
        (root / name).symlink_to(synth_root / name)
    return root


def test_missing_table_is_named(broken: Path, tmp_path: Path) -> None:
    (broken / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(MissingTableError, match=r"ego_pose\.json"):
        convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)
    with pytest.raises(MissingTableError, match=r"v1\.0-trainval"):
        convert(broken, tmp_path / "out", "v1.0-trainval", workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_damaged_table_is_named(broken: Path, tmp_path: Path) -> None:
    path = broken / "v1.0-mini" / "sample.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(MissingTableError, match=r"sample\.json is not a nuScenes table"):
        convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)


def test_missing_image_is_named(broken: Path, tmp_path: Path) -> None:
    path = broken / "v1.0-mini" / "sample_data.json"
    rows = json.loads(path.read_text())
    camera = next(r for r in rows if r["fileformat"] == "jpg")
    camera["filename"] = "samples/CAM_FRONT/gone.jpg"
    path.write_text(json.dumps(rows))
    index = convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)
    with pytest.raises(MissingFileError, match=r"gone\.jpg"):
        check_files(index)
    row = int(np.argwhere(index.camera_file == b"samples/CAM_FRONT/gone.jpg")[0, 0])
    dataset = DriveDataset(DataConfig(image_size=(64, 96)), index)
    with pytest.raises(MissingFileError, match=r"gone\.jpg"):
        dataset[Draw(row, True, visit=0)]


def test_sample_without_objects(broken: Path, tmp_path: Path) -> None:
    (broken / "v1.0-mini" / "sample_annotation.json").write_text("[]")
    index = convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)
    sample = DriveDataset(DataConfig(image_size=(64, 96)), index)[Draw(0, True, visit=3)]
    assert sample.boxes.shape == (0, 9) and sample.labels.shape == (0,)


def test_annotations_with_broken_numbers(broken: Path, tmp_path: Path) -> None:
    path = broken / "v1.0-mini" / "sample_annotation.json"
    rows = json.loads(path.read_text())
    wrong = [
        ("translation", "NaN", r"sample_annotation\.json is not a nuScenes table"),
        ("translation", "1e400", "."),
        ("size", "0.0", f"1 boxes with .* size that is not positive, first {rows[3]['token']}"),
    ]
    for column, value, message in wrong:
        kept = rows[3][column]
        rows[3][column] = [1.0, "?", 1.0]
        path.write_text(json.dumps(rows).replace('"?"', value))
        with pytest.raises(DataError, match=message):
            convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)
        rows[3][column] = kept
    # Seen once only: no velocity, by the devkit's rule. Training takes it as 0.
    for row in rows:
        row["prev"] = row["next"] = ""
    path.write_text(json.dumps(rows))
    index = convert(broken, tmp_path / "out", "v1.0-mini", workers=1, progress=False)
    assert np.isnan(index.velocity).all()
    sample = DriveDataset(DataConfig(image_size=(64, 96)), index)[Draw(0, True, visit=3)]
    assert len(sample.boxes) and not sample.boxes[:, 7:].any()


def test_index_says_what_is_wrong_with_it(synth_index: DriveIndex, tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="s4d-train convert"):
        DriveIndex.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(synth_index.folder, copy)
    header = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(IndexFormatError, match="format 99"):
        DriveIndex.open(copy)
    (copy / "index.json").write_text(json.dumps(header))
    np.save(copy / "box.npy", np.zeros((3, 7)))
    with pytest.raises(IndexFormatError, match=r"box\.npy"):
        _ = DriveIndex.open(copy).box
    (copy / "box.npy").unlink()
    with pytest.raises(IndexFormatError, match="box"):
        DriveIndex.open(copy)
    # Nothing is ever unpickled.
    np.save(copy / "box.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(IndexFormatError, match="damaged"):
        _ = DriveIndex.open(copy).box


def test_command_line(synth_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "index")
    assert (
        main(
            ["convert", str(synth_root), "--out", out, "--quiet", "--workers", "1", "--check-files"]
        )
        == 0
    )
    assert "12 samples" in capsys.readouterr().out
    assert main(["anchors", out, "--out", str(tmp_path / "a.npy"), "--count", "20"]) == 0
    assert np.load(tmp_path / "a.npy").shape == (20, 11)
    assert main(["convert", str(tmp_path), "--out", out, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_all_versions_at_once(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder as nuScenes users have it: another version beside, the test set without objects."""
    test = broken / "v1.0-test"
    shutil.copytree(broken / "v1.0-mini", test)
    for name in ("sample_annotation", "instance"):
        (test / f"{name}.json").write_text("[]")
    out = str(tmp_path / "out")
    quiet = ["--quiet", "--workers", "1"]
    assert main(["convert", str(broken), "--out", out, *quiet]) == 1
    assert "v1.0-mini, v1.0-test; give --version" in capsys.readouterr().err
    assert main(["convert", str(broken), "--out", out, *quiet, "--version", "all"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "v1.0-test, 2 scenes, 12 samples, 0 boxes" in said[1]
    mini, tested = (DriveIndex.open(Path(out) / name) for name in ("v1.0-mini", "v1.0-test"))
    assert len(mini.box) > 0 and len(tested.box) == 0
    np.testing.assert_array_equal(mini.lidar2camera, tested.lidar2camera)
    (test / "ego_pose.json").unlink()
    assert main(["convert", str(broken), "--out", out, *quiet, "--version", "all"]) == 1
    assert "ego_pose.json" in capsys.readouterr().err
