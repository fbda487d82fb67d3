"""``s4d-run view``: pictures, films or a rerun recording of a results file on its data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .drive import add_picture_arguments

if TYPE_CHECKING:
    from ..frame import Detections, Frame
    from ..nuscenes import NuScenes, Sample

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS", help="detection.json or tracking.json")
    parser.add_argument("--data", required=True, help="the data set folder")
    parser.add_argument("--out", type=Path, default=Path("s4d-view"), help="folder (s4d-view)")
    parser.add_argument("--version", help="table folder, where there are several")
    parser.add_argument("--scene", action="append", help="only this scene; may be repeated")
    parser.add_argument("--limit", type=int, help="at most this many frames of each scene")
    parser.add_argument("--annotations", action="store_true", help="draw the annotated objects too")
    parser.add_argument(
        "--rerun", type=Path, metavar="FILE.rrd", help="write a rerun recording instead of pictures"
    )
    add_picture_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..drive import frames_of
    from ..errors import ResultsError
    from ..nuscenes import CAMERA_ORDER, NuScenes, read_results
    from ..nuscenes.submission import detections_of

    results = read_results(args.results)
    dataset = NuScenes(args.data, args.version)
    scenes = [s for s in dataset.select(args.scene) if any(t in results for t in s.samples)]
    if not scenes:
        raise ResultsError(f"{args.results!r} has no sample of the scenes chosen in {args.data!r}")
    drawn = 0
    total = sum(len(s.samples[: args.limit]) for s in scenes)
    with tqdm(total=total, unit="frame", disable=None) as bar:
        viewer = _Recorder(dataset, args) if args.rerun else _Painter(dataset, args)
        for scene in scenes:
            bar.set_description(scene.name)
            for sample, frame in frames_of(dataset, scene, CAMERA_ORDER, args.limit):
                viewer.add(sample, frame, detections_of(results.get(sample.token, []), sample))
                drawn += 1
                bar.update()
            viewer.end_scene(scene.name)
        where = viewer.close()
    what = "frame" if args.rerun else "picture"
    print(f"{drawn} {what}{'' if drawn == 1 else 's'} in {where}")
    return 0


class _Painter:
    """Pictures and films."""

    def __init__(self, dataset: NuScenes, args: argparse.Namespace) -> None:
        from ..drive import Pictures

        self._dataset = dataset
        self._pictures = Pictures(
            args.out,
            args.min_score,
            args.annotations,
            video=args.video,
            fps=args.fps,
            lidar=not args.no_lidar,
        )

    def add(self, sample: Sample, frame: Frame, detections: Detections) -> None:
        from ..nuscenes import CAMERA_ORDER, DETECTION_NAMES

        self._pictures.add(self._dataset, sample, frame, CAMERA_ORDER, detections, DETECTION_NAMES)

    def end_scene(self, name: str) -> None:
        self._pictures.end_scene(name)

    def close(self) -> str:
        films = self._pictures.film_names
        return f"{self._pictures.folder}{f'  film: {films}' if films else ''}"


class _Recorder:
    """A rerun recording."""

    def __init__(self, dataset: NuScenes, args: argparse.Namespace) -> None:
        from ..render import Recording

        self._dataset = dataset
        self._args = args
        self._recording = Recording(args.rerun)

    def add(self, sample: Sample, frame: Frame, detections: Detections) -> None:
        from ..drive import lidar_points
        from ..nuscenes import CAMERA_ORDER, DETECTION_NAMES
        from ..render import Objects

        args = self._args
        truth = None
        if args.annotations:
            truth = Objects.from_annotations(self._dataset.annotations(sample))
        self._recording.add(
            sample,
            frame,
            CAMERA_ORDER,
            Objects.from_detections(detections, DETECTION_NAMES, args.min_score),
            truth,
            None if args.no_lidar else lidar_points(sample),
        )

    def end_scene(self, name: str) -> None:
        """A recording holds all scenes."""

    def close(self) -> str:
        return str(self._recording.close())
