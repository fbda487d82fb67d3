"""Run a pipeline over a data set: results, pictures, and a report."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BackendError, DatasetError, FrameError
from .files import write_bytes
from .frame import Detections, Frame
from .nuscenes import NuScenes, Sample, Scene, SubmissionWriter
from .nuscenes.dataset import CAMERA_ORDER
from .pipeline import Pipeline

__all__ = ["DriveReport", "Pictures", "drive", "frames_of", "lidar_points"]


@dataclass
class DriveReport:
    """What a drive did and where its files are."""

    frames: int = 0
    skipped: int = 0
    seconds: float = 0.0
    boxes: int = 0
    tracked_boxes: int = 0
    files: dict[str, str] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)


class Pictures:
    """Draws frames into ``folder/SCENE/0000.png`` and makes a film of each scene.

    Args:
        folder: where to.
        min_score: boxes below are not drawn.
        annotations: also draw the annotated objects (alone where there is no model).
        anchors: (M, >= 3) LiDAR-frame positions to mark, or None.
        video: ``"gif"``, ``"mp4"``, ``"both"`` or ``"none"``.
        fps: pictures per second in films.
        lidar: show the LiDAR points in the bird's-eye view where the data set has them.
    """

    def __init__(
        self,
        folder: Path,
        min_score: float = 0.25,
        annotations: bool = False,
        anchors: NDArray[np.float64] | None = None,
        video: str = "gif",
        fps: float = 2.0,
        lidar: bool = True,
    ) -> None:
        from .render import Renderer, require_mp4

        if video in ("mp4", "both"):
            require_mp4()
        self.folder = folder
        self.films: list[Path] = []
        self._renderer = Renderer()
        self._min_score = min_score
        self._annotations = annotations
        self._anchors = anchors
        self._video = video
        self._fps = fps
        self._lidar = lidar
        self._drawn: list[Path] = []

    def add(
        self,
        dataset: NuScenes,
        sample: Sample,
        frame: Frame,
        camera_names: Sequence[str],
        detections: Detections | None,
        class_names: Sequence[str],
        note: str = "",
    ) -> Path:
        """Draw one frame. ``detections`` None with class names given: the frame was skipped."""
        from .render import Objects, View

        truth = Objects.from_annotations(dataset.annotations(sample)) if self._annotations else None
        objects = None
        if detections is not None:
            objects = Objects.from_detections(detections, class_names, self._min_score)
        elif not class_names:
            objects, truth = truth, None  # no model: the annotations take the main role
        number = len(self._drawn)
        view = View(
            frame,
            camera_names,
            objects=objects,
            truth=truth,
            points=lidar_points(sample) if self._lidar else None,
            marks=self._anchors,
            title=f"{sample.scene}   frame {number + 1}",
            note=note or (f"{len(objects)} objects" if objects is not None else ""),
        )
        path = self.folder / sample.scene / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        self._renderer.draw(view).save(partial, format="PNG", compress_level=4)
        partial.replace(path)
        self._drawn.append(path)
        return path

    @property
    def film_names(self) -> str:
        """The first film's path and how many more there are."""
        more = len(self.films) - 1
        return f"{self.films[0]}{f' and {more} more' if more else ''}" if self.films else ""

    def end_scene(self, name: str) -> None:
        """Make the film of the scene's pictures and begin anew."""
        from .render import write_gif, write_mp4

        if self._drawn:
            if self._video in ("gif", "both"):
                self.films.append(write_gif(self.folder / f"{name}.gif", self._drawn, self._fps))
            if self._video in ("mp4", "both"):
                self.films.append(write_mp4(self.folder / f"{name}.mp4", self._drawn, self._fps))
        self._drawn = []
        self._renderer.reset()


def frames_of(
    dataset: NuScenes, scene: Scene, cameras: Sequence[str], limit: int | None = None
) -> Iterator[tuple[Sample, Frame]]:
    """Samples of a scene in time order with their decoded frames; the next is read ahead."""
    tokens = scene.samples[:limit]

    def load(token: str) -> tuple[Sample, Frame]:
        sample = dataset.sample(token)
        return sample, dataset.frame(sample, cameras)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="s4d-read") as pool:
        coming = pool.submit(load, tokens[0]) if tokens else None
        for following in (*tokens[1:], None):
            assert coming is not None
            ready = coming.result()
            coming = None if following is None else pool.submit(load, following)
            yield ready
            if coming is None:
                return


def drive(
    dataset: NuScenes,
    scenes: Sequence[Scene],
    out: Path,
    pipeline: Pipeline | None,
    pictures: Pictures | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> DriveReport:
    """Run over scenes, each from a reset, and write results.

    A model that looks at frames to come has none for the last samples of a scene: these count as
    skipped.

    Args:
        dataset: the data set.
        scenes: which of its scenes.
        out: folder for ``detection.json``, ``tracking.json``, ``run.json``.
        pipeline: the model; None only draws.
        pictures: where to draw, or None.
        limit: at most this many frames per scene.
        progress: show a progress bar where there is a terminal.

    Raises:
        FrameError, BackendError: from the pipeline, with the sample's token added.
        DatasetError: the data set is broken, or there is nothing to run on.
    """
    from tqdm import tqdm

    total = sum(len(s.samples[:limit]) for s in scenes)
    if total == 0:
        raise DatasetError(f"{dataset.root} has no samples in the scenes chosen")
    cameras: tuple[str, ...] = CAMERA_ORDER
    classes: tuple[str, ...] = ()
    report = DriveReport()
    with ExitStack() as stack:
        writer = None
        if pipeline is not None:
            cameras = pipeline.manifest.preprocessing.camera_names
            classes = pipeline.manifest.class_names
            threshold = pipeline.manifest.thresholds.tracking_threshold
            writer = stack.enter_context(SubmissionWriter(out, classes, threshold))
        bar = stack.enter_context(
            tqdm(total=total, unit="frame", disable=None if progress else True)
        )
        start = time.perf_counter()

        def finish(sample: Sample, frame: Frame, detections: Detections | None) -> None:
            report.frames += 1
            if writer is not None:
                report.skipped += detections is None
                writer.add(sample, detections)
            if pictures is not None:
                note = _note(pipeline)
                pictures.add(dataset, sample, frame, cameras, detections, classes, note)
            bar.update()

        delay = 0 if pipeline is None else pipeline.delay
        for scene in scenes:
            bar.set_description(scene.name)
            if pipeline is not None:
                pipeline.reset()
            waiting: deque[tuple[Sample, Frame]] = deque()
            for sample, frame in frames_of(dataset, scene, cameras, limit):
                detections = _detect(pipeline, sample, frame)
                waiting.append((sample, frame))
                if len(waiting) > delay:
                    finish(*waiting.popleft(), detections)
            for sample, frame in waiting:
                finish(sample, frame, None)
            if pictures is not None:
                pictures.end_scene(scene.name)
        report.seconds = time.perf_counter() - start
    if writer is not None and pipeline is not None:
        report.boxes, report.tracked_boxes = writer.boxes, writer.tracked_boxes
        report.files["detection"] = str(writer.detection_path)
        report.files["tracking"] = str(writer.tracking_path)
        report.pipeline = {"backend": pipeline.backend_choice, **pipeline.stats.snapshot()}
    if pictures is not None:
        report.files["pictures"] = str(pictures.folder)
        if pictures.films:
            report.files["film"] = pictures.film_names
    report.files["run"] = str(out / "run.json")
    write_bytes(out / "run.json", json.dumps(vars(report), indent=2).encode() + b"\n")
    return report


def _detect(pipeline: Pipeline | None, sample: Sample, frame: Frame) -> Detections | None:
    if pipeline is None:
        return None
    try:
        return pipeline(frame)
    except (FrameError, BackendError) as error:
        raise type(error)(f"{sample.scene}, sample {sample.token}: {error}") from None


def _note(pipeline: Pipeline | None) -> str:
    if pipeline is None or pipeline.last is None:
        return ""
    last = pipeline.last
    if last.outcome in ("skipped", "error"):
        return f"{pipeline.manifest.name}   skipped: {last.cause}"
    what = "" if last.outcome == "ok" else f"   {last.outcome}"
    return f"{pipeline.manifest.name}   {last.milliseconds['total']:.0f} ms{what}"


def lidar_points(sample: Sample) -> NDArray[np.float32] | None:
    """(P, 3) points of a nuScenes sweep file (float32 x y z intensity ring), if it is there."""
    try:
        raw = np.fromfile(sample.lidar_path, dtype=np.float32)
    except OSError:
        return None
    if raw.size == 0 or raw.size % 5:
        return None
    points: NDArray[np.float32] = raw.reshape(-1, 5)[:, :3]
    return points[np.isfinite(points).all(axis=1)]
