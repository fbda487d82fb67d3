"""From a checkpoint and a drive to tracked boxes, through all five packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s4d_core import decode, load_checkpoint
from s4d_export.cli import main as s4d_export
from s4d_export.int8.images import dataset_images
from s4d_runtime import Pipeline
from s4d_runtime.cli import main as s4d_run
from s4d_runtime.drive import frames_of
from s4d_runtime.nuscenes import NuScenes
from s4d_train.cli import main as s4d_train


def test_verify_says_that_graph_and_checkpoint_agree(
    checkpoint: Path, artifact: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--frames", "4", "--data", str(world)]
    assert s4d_export(["verify", str(checkpoint), str(artifact), *arguments]) == 0
    assert "boxes" in capsys.readouterr().out


def test_an_index_gives_the_calibration_the_images_of_its_data_set(
    checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    assert s4d_train(["convert", str(world), "--out", str(index), "--quiet"]) == 0
    config = load_checkpoint(checkpoint).config
    raw, converted = (list(dataset_images(config, folder, 2)) for folder in (world, index))
    assert len(raw) == len(converted) == 2
    for first, second in zip(raw, converted, strict=True):
        np.testing.assert_array_equal(first, second)


def test_drive_writes_results_with_track_ids_and_pictures(
    artifact: Path, world: Path, tmp_path: Path
) -> None:
    command = ["drive", str(world), "--artifact", str(artifact), "--out", str(tmp_path)]
    assert s4d_run([*command, "--render"]) == 0
    detection = json.loads((tmp_path / "detection.json").read_text())["results"]
    tracking = json.loads((tmp_path / "tracking.json").read_text())["results"]
    samples = json.loads((world / "v1.0-mini" / "sample.json").read_text())
    assert set(detection) == set(tracking) == {sample["token"] for sample in samples}
    assert sum(len(boxes) for boxes in detection.values()) > 0
    assert all(box["tracking_id"] for boxes in tracking.values() for box in boxes)
    assert len(list(tmp_path.rglob("*.png"))) == len(samples)


def test_pipeline_gives_the_boxes_of_the_torch_model(
    checkpoint: Path, artifact: Path, world: Path
) -> None:
    """The same raw images: once through the runtime, once through torch by hand."""
    model = load_checkpoint(checkpoint)
    config = model.config
    dataset = NuScenes(world)
    state, compared = None, 0
    with Pipeline.load(artifact) as pipeline:
        for _, frame in frames_of(dataset, dataset.scenes[0], config.camera_names):
            found = pipeline(frame)
            assert found is not None
            images, lidar2img = network_input(frame, config)
            height, width = config.image.size
            with torch.no_grad():
                output = model(
                    model.normalise(images),
                    lidar2img,
                    torch.tensor([width, height]).float().expand(1, len(frame.cameras), 2),
                    torch.tensor([frame.timestamp], dtype=torch.float64),
                    torch.tensor(np.asarray(frame.lidar2global), dtype=torch.float64)[None],
                    state,
                )
            state = output.state
            expected = decode(output, config)[0]
            sure = expected.scores.numpy() > 0.1
            np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=2e-4)
            np.testing.assert_array_equal(found.labels[sure], expected.labels.numpy()[sure])
            np.testing.assert_allclose(found.boxes[sure], expected.boxes.numpy()[sure], atol=2e-2)
            compared += int(sure.sum())
    assert compared > 0


def network_input(frame, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1, N, H, W, 3) uint8 at network size and lidar2img (1, N, 4, 4)."""
    from s4d_ops.image import plan_resize_crop, resize_crop

    images, matrices = [], []
    for image, camera in zip(frame.images, frame.cameras, strict=True):
        image = np.asarray(image)
        plan = plan_resize_crop(image.shape[:2], config.image.size)
        images.append(resize_crop(image, plan, config.image.resize_filter))
        pixels = np.eye(4)
        pixels[:3, :3] = plan.matrix @ camera.intrinsic
        matrices.append(pixels @ camera.lidar2camera)
    return torch.tensor(np.stack(images))[None], torch.tensor(np.stack(matrices))[None].float()


def test_artifact_and_checkpoint_score_alike(
    checkpoint: Path, artifact: Path, world: Path, tmp_path: Path
) -> None:
    """Metrics of the deployed graph equal those of the model to the third digit."""
    summaries = []
    for source in (checkpoint, artifact):
        out = tmp_path / source.name
        arguments = ["--data", str(world), "--split", "all", "--out", str(out), "--no-progress"]
        assert s4d_train(["eval", str(source), *arguments]) == 0
        summaries.append(json.loads((out / "metrics.json").read_text())["summary"])
    assert summaries[0]["mAP"] > 0.1
    for name in ("mAP", "NDS", "AMOTA"):
        assert summaries[1][name] == pytest.approx(summaries[0][name], abs=1e-3), name
