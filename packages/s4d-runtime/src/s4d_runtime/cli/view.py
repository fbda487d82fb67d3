"""``s4d-run view``: pictures of a results file on its data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from .drive import add_picture_arguments

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS", help="detection.json or tracking.json")
    parser.add_argument("--data", required=True, help="the data set folder")
    parser.add_argument("--out", type=Path, default=Path("s4d-view"), help="folder (s4d-view)")
    parser.add_argument("--version", help="table folder, where there are several")
    parser.add_argument("--scene", action="append", help="only this scene; may be repeated")
    parser.add_argument("--limit", type=int, help="at most this many frames of each scene")
    parser.add_argument("--annotations", action="store_true", help="draw the annotated objects too")
    add_picture_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..drive import Pictures, frames_of
    from ..errors import ResultsError
    from ..nuscenes import DETECTION_NAMES, NuScenes, read_results
    from ..nuscenes.dataset import CAMERA_ORDER
    from ..nuscenes.submission import detections_of

    results = read_results(args.results)
    dataset = NuScenes(args.data, args.version)
    scenes = [s for s in dataset.select(args.scene) if any(t in results for t in s.samples)]
    if not scenes:
        raise ResultsError(f"{args.results!r} has no sample of the scenes chosen in {args.data!r}")
    pictures = Pictures(
        args.out,
        args.min_score,
        args.annotations,
        video=args.video,
        fps=args.fps,
        lidar=not args.no_lidar,
    )
    drawn = 0
    total = sum(len(s.samples[: args.limit]) for s in scenes)
    with tqdm(total=total, unit="frame", disable=None) as bar:
        for scene in scenes:
            bar.set_description(scene.name)
            for sample, frame in frames_of(dataset, scene, CAMERA_ORDER, args.limit):
                detections = detections_of(results.get(sample.token, []), sample)
                pictures.add(dataset, sample, frame, CAMERA_ORDER, detections, DETECTION_NAMES)
                drawn += 1
                bar.update()
            pictures.end_scene(scene.name)
    films = f"  film: {pictures.films[0]}" if pictures.films else ""
    print(f"{drawn} pictures in {args.out}{films}")
    return 0
