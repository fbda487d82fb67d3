"""Pictures of the pipeline and of results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s4d_train.cli import main
from s4d_train.data import DataConfig, Draw, DriveDataset, DriveIndex
from s4d_train.errors import DataError
from s4d_train.view import draw_depth, draw_sample, view_results
from s4d_train.view.samples import _camera, _points


def test_projection_splits_into_camera_and_pose(synth_index: DriveIndex) -> None:
    dataset = DriveDataset(DataConfig(image_size=(64, 176)), synth_index, seed=0)
    for visit in range(6):  # flips and rotations among them
        for matrix in dataset[Draw(visit, True, visit)].lidar2img.double().numpy():
            camera = _camera(matrix)
            pose = np.asarray(camera.lidar2camera)
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
            np.testing.assert_allclose(
                np.asarray(camera.intrinsic) @ pose[:3], matrix[:3], rtol=1e-6, atol=1e-5
            )


def test_pictures_of_a_sample(synth_index: DriveIndex) -> None:
    config = DataConfig(image_size=(64, 176))
    sample = DriveDataset(config, synth_index)[Draw(0, True, visit=1)]
    picture = draw_sample(sample, config.camera_names, config.class_names)
    assert picture.width > 1000
    depth = draw_depth(sample, config.camera_names)
    assert depth.size == picture.size
    points = _points(sample)
    assert points is not None
    np.testing.assert_array_less(np.abs(points[:, :2]), 61.0 * 2**0.5)
    # Each point falls into the cell that it came from.
    back = np.column_stack([points, np.ones(len(points))]) @ sample.lidar2img[0].double().numpy().T
    cells = int((sample.depth[0][0] > 0).sum())
    pixel = back[:cells, :2] / back[:cells, 2:3] / 4
    np.testing.assert_allclose(pixel % 1.0, 0.5, atol=1e-3)


def test_command_line(synth_index: DriveIndex, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    arguments = [
        "view",
        str(synth_index.folder),
        "--out",
        str(out),
        "--frames",
        "1",
        "--image-size",
        "64x176",
    ]
    assert main(arguments) == 0
    assert main([*arguments, "--pipeline", "val", "--split", "mini_val"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000_boxes.png", "00000_depth.png"]


def test_results_as_gif(synth_index: DriveIndex, tmp_path: Path) -> None:
    token = synth_index.token[0].decode()
    place = (synth_index.lidar2global(0) @ [0.0, 10.0, -1.0, 1.0])[:3].tolist()
    box = {
        "sample_token": token,
        "translation": place,
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [1.0, 0.0],
        "tracking_id": "7",
        "tracking_name": "car",
        "tracking_score": 0.8,
    }
    path = tmp_path / "results.json"
    results = {token: [box], synth_index.token[1].decode(): []}
    path.write_text(json.dumps({"meta": {}, "results": results}))
    out = view_results(synth_index, path, tmp_path / "drive.gif", progress=False)
    with Image.open(out) as picture:
        assert picture.n_frames == 2
    path.write_text("[]")
    with pytest.raises(DataError, match="not a nuScenes results file"):
        view_results(synth_index, path, tmp_path / "x.gif", progress=False)
