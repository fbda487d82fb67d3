"""A results file in nuScenes submission format as pictures and as one MP4 or GIF."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from s4d_runtime import Frame
from s4d_runtime.frame import Camera
from s4d_runtime.render import Objects, Renderer, View, require_mp4, write_gif, write_mp4
from s4d_train.data import DriveIndex
from s4d_train.data.images import load_points
from s4d_train.data.poses import inverse, rotation_matrices
from s4d_train.errors import DataError

__all__ = ["view_results"]

Array = npt.NDArray[Any]


def view_results(
    index: DriveIndex,
    results: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    min_score: float = 0.3,
    root: str | Path | None = None,
    frames: int | None = None,
    progress: bool = True,
) -> Path:
    """Write ``out`` (.mp4, .gif, or a folder of PNGs) of every frame of a split with results.

    Detections are drawn in their track's colour, annotations thin and white. ``results`` is a
    detection or a tracking file. Returns ``out``.
    """
    out = Path(out)
    if out.suffix.lower() == ".mp4":
        require_mp4()
    content = _read(Path(results))
    rows = [r for r in index.samples(split) if index.token[r].decode() in content]
    if not rows:
        raise DataError(
            f"{results} has no sample of split {split or 'all'} of {index.folder}; "
            "check the split and the index"
        )
    rows = rows[:frames]
    data = Path(root) if root else index.root
    renderer = Renderer()
    with tempfile.TemporaryDirectory() as scratch:
        video = out.suffix.lower() in (".mp4", ".gif")
        folder = Path(scratch) if video else out
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for number, row in enumerate(tqdm(rows, desc="view", unit="frame", disable=not progress)):
            if index.frame[row] == 0:
                renderer.reset()
            boxes = content[index.token[row].decode()]
            picture = renderer.draw(_view(index, int(row), boxes, min_score, data))
            pictures.append(folder / f"{number:05d}.png")
            picture.save(pictures[-1])
        if video:
            out.parent.mkdir(parents=True, exist_ok=True)
            write = write_mp4 if out.suffix.lower() == ".mp4" else write_gif
            write(out, pictures, fps=2.0)
    return out


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text())["results"]
    except FileNotFoundError:
        raise DataError(f"expected the results file {path}, found none") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} is not a nuScenes results file; it needs a JSON object with 'results'"
        ) from None
    return dict(content)


def _view(
    index: DriveIndex, row: int, boxes: list[dict[str, Any]], min_score: float, data: Path
) -> View:
    from PIL import Image

    lidar2global = index.lidar2global(row)
    images = [
        np.asarray(Image.open(data / name.decode()).convert("RGB"))
        for name in index.camera_file[row]
    ]
    cameras = [
        Camera(k, e)
        for k, e in zip(index.camera_intrinsic[row], index.lidar2camera[row], strict=True)
    ]
    frame = Frame(images, float(index.timestamp[row]) * 1e-6, lidar2global, cameras)
    points = load_points(data / index.lidar_file[row].decode())
    title = f"{index.scenes[index.scene[row]]}  frame {index.frame[row]}"
    objects = _objects(boxes, inverse(lidar2global), min_score)
    return View(
        frame,
        index.cameras,
        objects,
        _truth(index, row),
        points,
        title=title,
        note=f"{len(objects)} boxes of score >= {min_score:g}",
    )


def _objects(boxes: list[dict[str, Any]], global2lidar: Array, min_score: float) -> Objects:
    """Boxes of a results file (global frame) in the LiDAR frame."""
    kept = [b for b in boxes if _score(b) >= min_score]
    n = len(kept)
    turn = global2lidar[:3, :3]
    centre = np.array([b["translation"] for b in kept]).reshape(n, 3) @ turn.T
    centre += global2lidar[:3, 3]
    rotation = rotation_matrices(np.array([b["rotation"] for b in kept]).reshape(n, 4))
    heading = rotation[:, :, 0] @ turn.T
    size = np.array([b["size"] for b in kept]).reshape(n, 3)[:, [1, 0, 2]]
    velocity = np.zeros((n, 3))
    velocity[:, :2] = np.array([b["velocity"] for b in kept]).reshape(n, 2)
    yaw = np.arctan2(heading[:, 1], heading[:, 0])[:, None]
    ids = [_number(b.get("tracking_id", -1)) for b in kept]
    return Objects(
        np.concatenate([centre, size, yaw, velocity @ turn.T], 1),
        [str(b.get("detection_name", b.get("tracking_name", ""))) for b in kept],
        np.array([_score(b) for b in kept]),
        np.array(ids, dtype=np.int64),
    )


def _score(box: dict[str, Any]) -> float:
    return float(box.get("detection_score", box.get("tracking_score", 0.0)))


def _number(track: Any) -> int:
    """A track id as a number; names are hashed so that they keep their colour."""
    try:
        return int(track)
    except ValueError:
        return sum((i + 1) * ord(c) for i, c in enumerate(str(track)))


def _truth(index: DriveIndex, row: int) -> Objects:
    rows = index.annotations(row)
    seen = np.flatnonzero((index.label[rows] >= 0) & (index.num_lidar_pts[rows] > 0))
    boxes = np.concatenate([index.box[rows], index.velocity[rows]], 1)[seen]
    names = [index.classes[i] for i in index.label[rows][seen]]
    ids = index.instance[rows][seen].astype(np.int64)
    return Objects(np.column_stack([boxes, np.zeros(len(boxes))]), names, None, ids)
