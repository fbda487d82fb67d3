"""Samples: geometry of every augmentation, depth, colours, determinism, broken files."""

from __future__ import annotations

import colorsys
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from s4d_train.data import (
    AugmentConfig,
    Batch,
    DataConfig,
    Draw,
    DriveDataset,
    DriveIndex,
    ImagePreparation,
    SequenceSampler,
    collate,
    sequence_rows,
)
from s4d_train.data.anchors import cluster, make_anchors
from s4d_train.data.augment import (
    draw_photometric,
    draw_sequence,
    plain_photometric,
    rotate_boxes,
)
from s4d_train.data.depth import depth_maps
from s4d_train.data.images import load_points, load_training_image
from s4d_train.data.preparation import apply_photometric, grid_mask
from s4d_train.errors import ConfigError, DataError, ImageFileError, MissingFileError

CONFIG = DataConfig(image_size=(64, 176))


@pytest.fixture(scope="module")
def dataset(synth_index: DriveIndex) -> DriveDataset:
    return DriveDataset(CONFIG, synth_index, seed=5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("resize_filter", ["pillow_bicubic", "pillow_bilinear", "cv2_linear"])
def test_the_matrix_says_where_pixels_go(tmp_path: Path, seed: int, resize_filter: str) -> None:
    """Blobs in a raw image are found where the transform's matrix puts them."""
    rng = np.random.default_rng(seed)
    raw, size = (300, 540), (96, 256)
    config = AugmentConfig(resize=(0.8, 1.4), crop_bottom=(0.0, 0.1), rotate_degrees=(-9, 9))
    transform = draw_sequence(config, rng).transform(raw, size)
    # The blob is put where the transform maps the wanted place from.
    u = v = -1.0
    while not (8 < u < raw[1] - 8 and 8 < v < raw[0] - 8):  # not beyond the file's border
        wanted = rng.uniform([40, 25], [size[1] - 40, size[0] - 25])
        u, v, _ = np.linalg.inv(transform.matrix) @ [*wanted, 1.0]
    y, x = np.mgrid[: raw[0], : raw[1]] + 0.5
    blob = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 4.0**2))
    path = tmp_path / "raw.png"
    Image.fromarray(np.repeat(blob[..., None], 3, -1).astype(np.uint8)).save(path)
    image = load_training_image(path, transform, resize_filter, fast=True)
    assert image.shape == (*size, 3)
    weight = image[..., 0].astype(float)
    weight[weight < 20] = 0
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    np.testing.assert_allclose(found, wanted, atol=0.25)


def test_fast_decode_moves_nothing(keyframe_index: DriveIndex) -> None:
    path = keyframe_index.root / keyframe_index.camera_file[0, 0].decode()
    transform = replace(
        draw_sequence(AugmentConfig(), np.random.default_rng(0)), rotate=0.0
    ).transform((900, 1600), (256, 704))
    slow, fast = (
        load_training_image(path, transform, "pillow_bicubic", f).astype(int) for f in (False, True)
    )
    assert np.abs(slow - fast).mean() < 2.0
    # A shift by a pixel would cost far more than the other filter does.
    assert np.abs(slow[:, 1:] - fast[:, :-1]).mean() > 2 * np.abs(slow - fast).mean()


def test_boxes_stay_on_their_objects(synth_index: DriveIndex, dataset: DriveDataset) -> None:
    """World points keep their place in the augmented image and in the world."""
    for visit in range(6):
        row = visit * 2
        plain = dataset[Draw(row, True)]
        shared = draw_sequence(CONFIG.augment, np.random.default_rng([5, 21, visit]))
        moved = dataset[Draw(row, True, visit=visit)]
        assert len(plain.boxes) == len(moved.boxes) > 0
        np.testing.assert_array_equal(plain.track_ids, moved.track_ids)
        one = torch.ones(len(plain.boxes), 1)
        centre = torch.cat([plain.boxes[:, :3], one], 1).double()
        turned = torch.cat([moved.boxes[:, :3], one], 1).double()
        # The global place does not change, nor does the global velocity or heading.
        torch.testing.assert_close(
            centre @ plain.lidar2global.T, turned @ moved.lidar2global.T, atol=1e-4, rtol=0
        )
        for sample in (plain, moved):
            turn = sample.lidar2global[:2, :2]
            sample.velocity = sample.boxes[:, 7:9].double() @ turn.T  # type: ignore[attr-defined]
            yaw = sample.boxes[:, 6].double()
            sample.ahead = torch.stack([yaw.cos(), yaw.sin()], 1) @ turn.T  # type: ignore[attr-defined]
        torch.testing.assert_close(plain.velocity, moved.velocity, atol=1e-4, rtol=0)  # type: ignore[attr-defined]
        torch.testing.assert_close(plain.ahead, moved.ahead, atol=1e-5, rtol=0)  # type: ignore[attr-defined]
        # Image: raw projection, then the 2-D transform, is the sample's projection.
        intrinsic = np.tile(np.eye(4), (6, 1, 1))
        intrinsic[:, :3, :3] = synth_index.camera_intrinsic[row]
        raw = intrinsic @ synth_index.lidar2camera[row]
        transform = shared.transform((180, 320), CONFIG.image_size)
        for camera in range(6):
            before = centre.numpy() @ raw[camera].T
            ahead = before[:, 2] > 1.0
            pixel = before[ahead, :3] / before[ahead, 2:3] @ transform.matrix.T
            after = turned.numpy() @ moved.lidar2img[camera].double().numpy().T
            np.testing.assert_allclose(
                after[ahead, :2] / after[ahead, 2:3], pixel[:, :2], atol=0.02
            )
            expected = synth_index.camera_intrinsic[row, camera, 0, 0] * transform.scale
            assert moved.focal[camera].item() == pytest.approx(expected)


def test_evaluation_is_what_the_runtime_does(
    synth_index: DriveIndex, dataset: DriveDataset
) -> None:
    from s4d_ops.image import plan_resize_crop, resize_crop

    sample = dataset[Draw(3, False)]
    plan = plan_resize_crop((180, 320), CONFIG.image_size)
    path = synth_index.root / synth_index.camera_file[3, 2].decode()
    image = resize_crop(np.asarray(Image.open(path)), plan, "pillow_bicubic")
    np.testing.assert_array_equal(sample.images[2].numpy(), image)
    matrix = np.eye(4)
    matrix[:3, :3] = plan.matrix @ synth_index.camera_intrinsic[3, 2]
    np.testing.assert_allclose(
        sample.lidar2img[2], matrix @ synth_index.lidar2camera[3, 2], rtol=1e-4, atol=1e-3
    )
    assert not sample.grid_mask[0] and (sample.photometric == plain_photometric(6)[0]).all()


def test_rotated_box_turns_back() -> None:
    boxes = np.random.default_rng(0).normal(size=(5, 9))
    np.testing.assert_allclose(rotate_boxes(rotate_boxes(boxes, 0.3), -0.3), boxes, atol=1e-12)


def test_depth_nearest_point_wins() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-40, 40, (4000, 3)).astype(np.float32)
    lidar2img = np.tile(np.eye(4), (2, 1, 1))
    lidar2img[0, :3] = [[50, 0, 32, 0], [0, 50, 16, 0], [0, 0, 1, 0]]
    lidar2img[1, :3] = [[0, 50, 32, 1], [50, 0, 16, 2], [0, 0, -1, 1]]
    maps = depth_maps(points, lidar2img, (32, 64), (4, 8), 30.0)
    assert [m.shape for m in maps] == [(2, 8, 16), (2, 4, 8)]
    for camera, (level, stride) in itertools.product(range(2), enumerate((4, 8))):
        expected = np.full((32 // stride, 64 // stride), np.inf)
        for point in points.astype(float):
            u, v, d = (lidar2img[camera] @ [*point, 1.0])[:3]
            if d >= 0.1 and 0 <= u / d < 64 and 0 <= v / d < 32:
                cell = int(v / d) // stride, int(u / d) // stride
                expected[cell] = min(expected[cell], d)
        expected = np.where(np.isinf(expected), -1.0, np.minimum(expected, 30.0))
        np.testing.assert_allclose(maps[level][camera], expected, rtol=1e-4)


def test_depth_agrees_with_the_boxes(keyframe_index: DriveIndex) -> None:
    """On the real key frame, LiDAR depth inside a box's image is about the box's distance."""
    dataset = DriveDataset(DataConfig(), keyframe_index, seed=1)
    checked = good = 0
    for visit in range(4):
        sample = dataset[Draw(0, True, visit=visit)]
        for box in sample.boxes:
            for camera in range(6):
                u, v, d, _ = (sample.lidar2img[camera] @ torch.tensor([*box[:3], 1.0])).tolist()
                if d < 2 or not (8 < u / d < 696 and 8 < v / d < 248):
                    continue
                y, x = int(v / d) // 4, int(u / d) // 4
                near = sample.depth[0][camera, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                near = near[near > 0]
                if len(near) and d < 55:
                    checked += 1
                    good += bool((near - d).abs().min() < max(2.0, 0.5 * float(box[3])))
    assert checked > 60 and good > 0.8 * checked


def test_photometric_is_hsv_arithmetic() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (3, 4, 5))
    cases = [
        [10, 1.2, 0, 0.7, 12, 0, 1, 2],
        [-20, 0.6, 1, 1.3, -17, 2, 0, 1],
        [0, 1, 0, 1, 0, 0, 1, 2],
    ]
    for case in cases:
        brightness, contrast, late, saturation, hue, *order = case
        expected = np.empty_like(image)
        for y, x in itertools.product(range(4), range(5)):
            rgb = (image[:, y, x] + brightness) * (1 if late else contrast)
            # colorsys wants values that are not negative; the shift of V does not matter to it.
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            if rgb.min() < 0:
                expected[:, y, x] = np.nan
                continue
            s *= saturation
            bright = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1.0, min(s, 1.0), v))
            if s > 1:  # beyond the hexagon: linear continuation
                full = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1.0, 1.0, v))
                bright = v - s * (v - full)
            expected[:, y, x] = (bright * (contrast if late else 1))[[int(i) for i in order]]
        found = apply_photometric(
            torch.tensor(image)[None], torch.tensor([case], dtype=torch.float64)
        )[0].numpy()
        known = ~np.isnan(expected)
        np.testing.assert_allclose(found[known], expected[known], atol=1e-6)


def test_photometric_ranges() -> None:
    drawn = np.concatenate([draw_photometric(6, np.random.default_rng(k)) for k in range(300)])
    assert np.abs(drawn[:, 0]).max() <= 32 and 0.4 < (drawn[:, 0] == 0).mean() < 0.6
    for column in (1, 3):
        assert drawn[:, column].min() >= 0.5 and drawn[:, column].max() <= 1.5
    assert np.abs(drawn[:, 4]).max() <= 18
    assert (np.sort(drawn[:, 5:], 1) == [0, 1, 2]).all()


def test_grid_mask_against_a_loop() -> None:
    parameters = torch.tensor([[1.0, 10, 4, 3, 7], [0, 10, 4, 3, 7]])
    mask = grid_mask(parameters, (24, 31))
    for y, x in itertools.product(range(24), range(31)):
        kept = (y - 3) % 10 < 4 or (x - 7) % 10 < 4
        assert mask[0, y, x] == float(kept)
    assert (mask[1] == 1).all()


def test_preparation_normalises(dataset: DriveDataset) -> None:
    batch = collate([dataset[Draw(0, True)], dataset[Draw(1, False)]])
    out = ImagePreparation()(batch)
    assert out.shape == (2, 6, 3, 64, 176) and out.dtype == torch.float32
    pixel = batch.images[1, 2, 30, 40].float()
    expected = (pixel - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
        [58.395, 57.12, 57.375]
    )
    torch.testing.assert_close(out[1, 2, :, 30, 40], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(out, ImagePreparation()(batch, augment=False), atol=1e-4, rtol=0)


def _equal(a: Batch, b: Batch) -> bool:
    def same(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)  # type: ignore[arg-type]
        if isinstance(x, list | tuple):
            return len(x) == len(y) and all(map(same, x, y))  # type: ignore[arg-type]
        return x == y

    return all(same(getattr(a, k), getattr(b, k)) for k in vars(a))


def test_workers_change_nothing(synth_index: DriveIndex, dataset: DriveDataset) -> None:
    sequences = sequence_rows(synth_index, "mini_train", 2)

    def batches(workers: int) -> list[Batch]:
        sampler = SequenceSampler(sequences, 2, seed=1)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return list(itertools.islice(loader, 4))

    assert all(itertools.starmap(_equal, zip(batches(0), batches(2), strict=True)))


def test_augmentation_is_shared_within_a_walk(dataset: DriveDataset) -> None:
    first, second = dataset[Draw(0, True, 4, 0)], dataset[Draw(1, False, 4, 1)]
    other = dataset[Draw(0, True, 5, 0)]
    assert torch.equal(first.focal, second.focal) and not torch.equal(first.focal, other.focal)
    assert not torch.equal(first.photometric, second.photometric)
    assert _equal(collate([first]), collate([dataset[Draw(0, True, 4, 0)]]))


def test_filters(synth_index: DriveIndex) -> None:
    near = DriveDataset(replace(CONFIG, max_distance=20.0), synth_index)[Draw(0, True)]
    far = DriveDataset(replace(CONFIG, require_points=False), synth_index)[Draw(0, True)]
    assert (near.boxes[:, :2].norm(dim=1) <= 20).all()
    assert len(near.boxes) < len(far.boxes)
    assert not torch.isnan(far.boxes).any()
    cars = DriveDataset(replace(CONFIG, class_names=("car", "bus")), synth_index)[Draw(0, True)]
    assert set(cars.labels.tolist()) <= {0, 1}


def test_another_rig(synth_index: DriveIndex) -> None:
    config = replace(CONFIG, camera_names=("CAM_BACK", "CAM_FRONT"), depth_strides=())
    sample = DriveDataset(config, synth_index)[Draw(2, True)]
    whole = DriveDataset(CONFIG, synth_index)[Draw(2, True)]
    assert torch.equal(sample.images, whole.images[[3, 0]])
    assert torch.equal(sample.lidar2img, whole.lidar2img[[3, 0]])
    assert sample.depth == ()
    with pytest.raises(DataError, match="CAM_TOP"):
        DriveDataset(replace(CONFIG, camera_names=("CAM_TOP",)), synth_index)
    with pytest.raises(ConfigError, match="divisible"):
        DriveDataset(replace(CONFIG, image_size=(60, 176)), synth_index)


def test_broken_files_are_named(synth_index: DriveIndex, tmp_path: Path, synth_root: Path) -> None:
    shutil.copytree(synth_root / "samples", tmp_path / "samples")
    dataset = DriveDataset(replace(CONFIG, root=str(tmp_path)), synth_index)
    picture = tmp_path / synth_index.camera_file[0, 1].decode()
    content = picture.read_bytes()
    for damage in (content[: len(content) // 2], b"not a picture", b""):
        picture.write_bytes(damage)
        for draw in (Draw(0, True, 0), Draw(0, True)):
            with pytest.raises(ImageFileError, match=r"cannot decode .*CAM_FRONT_RIGHT"):
                dataset[draw]
    Image.new("RGB", (100, 80)).save(picture)
    with pytest.raises(DataError, match=r"320 x 180 .* 100 x 80"):
        dataset[Draw(0, True)]
    picture.write_bytes(content)
    points = tmp_path / synth_index.lidar_file[0].decode()
    points.write_bytes(points.read_bytes()[:-3])
    with pytest.raises(ImageFileError, match="five float32"):
        dataset[Draw(0, True)]
    points.unlink()
    with pytest.raises(MissingFileError, match="depth"):
        load_points(points)


def test_anchors(synth_index: DriveIndex, shared: Path) -> None:
    anchors = make_anchors(synth_index, None, 50, seed=2)
    published = np.load(shared / "data" / "anchors" / "nuscenes_kmeans900.npy")
    assert anchors.dtype == published.dtype and anchors.shape[1] == published.shape[1]
    np.testing.assert_array_equal(anchors, make_anchors(synth_index, None, 50, seed=2))
    assert not np.array_equal(anchors, make_anchors(synth_index, None, 50, seed=3))
    assert (np.linalg.norm(anchors[:, :3], axis=1) <= 55).all()
    assert (anchors[:, 6:] == [0, 1, 0, 0, 0]).all()
    with pytest.raises(DataError, match="5000 anchors"):
        make_anchors(synth_index, None, 5000)


def test_kmeans_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, (12, 3))
    points = (centres[:, None] + rng.normal(0, 0.1, (12, 40, 3))).reshape(-1, 3)
    found = cluster(points, 12, seed=0)
    gaps = np.linalg.norm(found[:, None] - centres, axis=-1)
    assert gaps.min(1).max() < 0.1 and sorted(gaps.argmin(1)) == list(range(12))
    assert np.isfinite(cluster(np.zeros((30, 3)), 4, seed=0)).all()
