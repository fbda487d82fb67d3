"""The synthetic world: determinism, geometry of both sensors, tables."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from s4d_train.synth import SynthConfig, SynthError, generate
from s4d_train.synth.camera import View, render
from s4d_train.synth.geometry import euler_rotation, matrix_to_quaternion
from s4d_train.synth.objects import KINDS, draw_size, make_shape
from s4d_train.synth.raster import cover, resolve
from s4d_train.synth.rig import LIDAR, Camera, cameras
from s4d_train.synth.scan import cast
from s4d_train.synth.scene import Scene

TIME = 2.0


def _digests(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(np.random.SeedSequence([2, 61]), 10.0, 1.0)


@pytest.fixture(scope="module")
def views(scene: Scene) -> list[tuple[Camera, View]]:
    rig = cameras(480, 270)
    rng = np.random.default_rng(0)
    faces = scene.faces(TIME)
    return [
        (
            c,
            render(
                faces,
                len(scene.actors),
                scene.town,
                scene.light,
                scene.noise,
                c,
                scene.ego_to_town(TIME) @ c.to_ego,
                rng,
            ),
        )
        for c in rig
    ]


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    config = SynthConfig(scenes=1, seed=9, image_size=(96, 64), frames=11, density=0.2)
    one = _digests(generate(tmp_path / "one", config, workers=1, progress=False))
    two = _digests(generate(tmp_path / "two", config, workers=2, progress=False))
    assert one == two
    other = SynthConfig(scenes=1, seed=10, image_size=(96, 64), frames=1, density=0.2)
    three = _digests(generate(tmp_path / "three", other, workers=1, progress=False))
    images = [name for name in three if name.endswith(".jpg")]
    assert images and all(three[name] != one[name] for name in images)


def test_import_needs_neither_torch_nor_devkit() -> None:
    code = "import sys, s4d_train.synth; print(*{'torch', 'nuscenes', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def _corners(size: tuple[float, float, float], pose: np.ndarray) -> np.ndarray:
    length, width, height = size
    corners = np.array(
        [
            [sx * length / 2, sy * width / 2, z]
            for sx in (-1, 1)
            for sy in (-1, 1)
            for z in (0.0, height)
        ]
    )
    c, s = np.cos(pose[2]), np.sin(pose[2])
    turned = corners @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).T
    return turned + np.array([pose[0], pose[1], 0.0])


def test_projected_box_holds_the_objects_pixels(
    scene: Scene, views: list[tuple[Camera, View]]
) -> None:
    poses = scene.poses(TIME)
    checked = 0
    for camera, view in views:
        town_to_camera = np.linalg.inv(scene.ego_to_town(TIME) @ camera.to_ego)
        for number, actor in enumerate(scene.actors):
            rows, columns = np.nonzero(view.actor == number)
            corners = _corners(actor.size, poses[number])
            local = corners @ town_to_camera[:3, :3].T + town_to_camera[:3, 3]
            if len(rows) < 30 or local[:, 2].min() < 0.3:
                continue
            pixel = local @ camera.intrinsic.T
            pixel = pixel[:, :2] / pixel[:, 2:]
            low, high = pixel.min(0), pixel.max(0)
            assert columns.min() + 0.5 >= low[0] - 1 and columns.max() + 0.5 <= high[0] + 1
            assert rows.min() + 0.5 >= low[1] - 1 and rows.max() + 0.5 <= high[1] + 1
            assert view.visible[number] == len(rows) <= view.covered[number]
            checked += 1
    assert checked >= 5


def test_camera_and_lidar_see_the_same_distances(
    scene: Scene, views: list[tuple[Camera, View]]
) -> None:
    lidar_to_town = scene.ego_to_town(TIME) @ LIDAR.to_ego
    sweep = cast(scene.parts(scene.faces(TIME)), LIDAR, lidar_to_town, np.random.default_rng(0))
    town = sweep.points[:, :3].astype(np.float64) @ lidar_to_town[:3, :3].T + lidar_to_town[:3, 3]
    for camera, view in views:
        town_to_camera = np.linalg.inv(scene.ego_to_town(TIME) @ camera.to_ego)
        local = town @ town_to_camera[:3, :3].T + town_to_camera[:3, 3]
        local = local[local[:, 2] > 1.0]
        pixel = local @ camera.intrinsic.T
        u, v = (pixel[:, :2] / pixel[:, 2:]).T
        inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        seen = view.depth[v[inside].astype(int), u[inside].astype(int)]
        # Parallax hides a part of what the LiDAR on the roof sees; the rest agrees.
        close = np.abs(seen / local[inside, 2] - 1.0) < 0.05
        assert inside.sum() > 500 and close.mean() > 0.85, camera.name


def test_lidar_points_lie_on_their_objects(scene: Scene) -> None:
    lidar_to_town = scene.ego_to_town(TIME) @ LIDAR.to_ego
    sweep = cast(scene.parts(scene.faces(TIME)), LIDAR, lidar_to_town, np.random.default_rng(0))
    town = sweep.points[:, :3].astype(np.float64) @ lidar_to_town[:3, :3].T + lidar_to_town[:3, 3]
    poses = scene.poses(TIME)
    hit = np.unique(sweep.actor[sweep.actor >= 0])
    assert len(hit) > 10
    for number in hit:
        x, y, heading = poses[number]
        away = town[sweep.actor == number] - [x, y, 0.0]
        c, s = np.cos(heading), np.sin(heading)
        along, across = away[:, 0] * c + away[:, 1] * s, away[:, 1] * c - away[:, 0] * s
        length, width, height = scene.actors[number].size
        assert np.abs(along).max() < length / 2 + 0.1
        assert np.abs(across).max() < width / 2 + 0.1
        assert away[:, 2].min() > -0.1 and away[:, 2].max() < height + 0.1


def test_nothing_drives_through_the_car(scene: Scene) -> None:
    for time in np.arange(0.0, 10.0, 0.25):
        ego = scene.ego.at(time)
        middle = ego[:2] + 1.4 * np.array([np.cos(ego[2]), np.sin(ego[2])])
        gaps = np.hypot(*(scene.poses(time)[:, :2] - middle).T)
        widths = np.array([min(a.size[0], a.size[1]) / 2 for a in scene.actors])
        assert (gaps > widths + 0.9).all()


def test_every_class_fills_its_box() -> None:
    rng = np.random.default_rng(0)
    for name in KINDS:
        for ridden in (True, False):
            size = draw_size(name, rng, ridden)
            shape = make_shape(name, size, rng, ridden)
            low, high = shape.quads.min((0, 1)), shape.quads.max((0, 1))
            np.testing.assert_allclose(high - low, size, rtol=1e-9)
            np.testing.assert_allclose(low, [-size[0] / 2, -size[1] / 2, 0.0], atol=1e-9)


def test_rasteriser_against_a_loop() -> None:
    rng = np.random.default_rng(3)
    intrinsic = np.array([[40.0, 0.0, 16.0], [0.0, 40.0, 12.0], [0.0, 0.0, 1.0]])
    middle = rng.uniform([-3, -2, 3], [3, 2, 9], (30, 1, 3))
    a, b = rng.normal(size=(2, 30, 1, 3))
    corners = np.concatenate([a, b, -a, -b], 1)  # a parallelogram: convex and flat
    quads = middle + corners
    found = resolve(cover(quads, intrinsic, 32, 24), 32 * 24)
    for row in range(24):
        for column in range(32):
            ray = np.array([(column + 0.5 - 16) / 40, (row + 0.5 - 12) / 40, 1.0])
            best, face = np.inf, -1
            for k, quad in enumerate(quads):
                normal = np.cross(quad[2] - quad[0], quad[3] - quad[1])
                depth = normal @ quad[0] / (normal @ ray)
                if not 0.2 < depth < best:
                    continue
                side = [
                    normal @ np.cross(quad[(i + 1) % 4] - quad[i], ray * depth - quad[i])
                    for i in range(4)
                ]
                if min(side) > 0:
                    best, face = depth, k
            at = row * 32 + column
            assert found.face[at] == face
            if face >= 0:
                assert found.depth[at] == pytest.approx(best, rel=1e-4)


def test_quaternion_of_a_matrix() -> None:
    from pyquaternion import Quaternion

    for yaw, pitch, roll in np.random.default_rng(0).uniform(-3.1, 3.1, (50, 3)):
        matrix = euler_rotation(yaw, pitch / 2.1, roll)
        back = Quaternion(matrix_to_quaternion(matrix)).rotation_matrix
        np.testing.assert_allclose(back, matrix, atol=1e-12)


def test_errors_are_named(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SynthError, match="not an empty folder"):
        generate(tmp_path / "full", SynthConfig(scenes=1), progress=False)
    with pytest.raises(SynthError, match="8 training scenes, asked for 16"):
        generate(tmp_path / "many", SynthConfig(scenes=20, split="mini"), progress=False)
    with pytest.raises(SynthError, match="at least one scene"):
        generate(tmp_path / "none", SynthConfig(scenes=0), progress=False)
    with pytest.raises(SynthError, match="32 x 32"):
        generate(tmp_path / "tiny", SynthConfig(scenes=1, image_size=(8, 8)), progress=False)


def test_scene_names_are_the_devkits() -> None:
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    assert set(SynthConfig(scenes=10).names()) == set(splits["mini_train"] + splits["mini_val"])
    names = SynthConfig(scenes=850, val_scenes=150).names()
    assert set(names) == set(splits["train"] + splits["val"])
    assert set(names[:700]) == set(splits["train"])
