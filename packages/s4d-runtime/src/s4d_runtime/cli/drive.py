"""``s4d-run drive``: an artifact over a data set in nuScenes layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["add_arguments", "add_picture_arguments", "load_anchors", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="PATH", help="data set folder (v1.0-*/, samples/)")
    parser.add_argument("--artifact", metavar="NAME.s4d", help="the model; without it only draw")
    parser.add_argument("--out", type=Path, default=Path("s4d-drive"), help="folder (s4d-drive)")
    parser.add_argument("--version", help="table folder, where there are several")
    parser.add_argument("--scene", action="append", help="only this scene; may be repeated")
    parser.add_argument("--limit", type=int, help="at most this many frames of each scene")
    parser.add_argument("--backend", default="auto", help="engine (auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: engine's choice)")
    parser.add_argument(
        "--policy",
        default="strict",
        help="what happens to unsound frames: strict, tolerant, or cause=action,... (strict)",
    )
    parser.add_argument("--render", action="store_true", help="draw a picture of every frame")
    parser.add_argument("--annotations", action="store_true", help="draw the annotated objects too")
    parser.add_argument("--anchors", metavar="FILE.npy", help="mark these anchors in the pictures")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write events as JSON lines")
    add_picture_arguments(parser)


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that drive and view share."""
    parser.add_argument("--min-score", type=float, default=0.25, help="draw boxes above (0.25)")
    parser.add_argument(
        "--video", choices=("gif", "mp4", "both", "none"), default="gif", help="films (gif)"
    )
    parser.add_argument("--fps", type=float, default=2.0, help="pictures per second in films (2)")
    parser.add_argument("--no-lidar", action="store_true", help="do not draw LiDAR points")


def run(args: argparse.Namespace) -> int:
    from ..drive import Pictures, drive
    from ..errors import UsageError
    from ..nuscenes import NuScenes
    from ..pipeline import Pipeline
    from ..stats import log_to_file

    if args.artifact is None and not (args.annotations or args.anchors):
        raise UsageError(
            "expected --artifact NAME.s4d, or --annotations or --anchors to draw without a model"
        )
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"expected --limit of at least 1, got {args.limit}")
    if args.log is not None:
        log_to_file(args.log)
    dataset = NuScenes(args.data, args.version)
    scenes = dataset.select(args.scene)
    pictures = None
    if args.render or args.artifact is None:
        pictures = Pictures(
            args.out / "pictures",
            args.min_score,
            args.annotations,
            None if args.anchors is None else load_anchors(args.anchors),
            args.video,
            args.fps,
            not args.no_lidar,
        )
    if args.artifact is None:
        report = drive(dataset, scenes, args.out, None, pictures, args.limit)
    else:
        with Pipeline.load(
            args.artifact, args.backend, threads=args.threads, policy=args.policy
        ) as pipeline:
            report = drive(dataset, scenes, args.out, pipeline, pictures, args.limit)
    skipped = f", {report.skipped} skipped" if report.skipped else ""
    rate = report.frames / report.seconds
    model = report.pipeline.get("latency_ms", {}).get("total", {})
    alone = f", {1e3 / model['mean']:.2f} in the model's pipeline alone" if model else ""
    boxes = f"; {report.boxes} boxes, {report.tracked_boxes} tracked" if report.pipeline else ""
    frames = "1 frame" if report.frames == 1 else f"{report.frames} frames"
    print(f"{frames}{skipped}, {rate:.2f} frames/s{alone}{boxes}")
    print("  ".join(f"{what}: {path}" for what, path in report.files.items()))
    return 0


def load_anchors(path: str) -> NDArray[np.float64]:
    """(M, 3) positions from an anchor file (M, >= 3).

    Raises:
        DatasetError: it is not such a file.
    """
    import numpy as np

    from ..errors import DatasetError

    try:
        anchors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"cannot read anchors {path!r}: {error}") from None
    if (
        not isinstance(anchors, np.ndarray)
        or anchors.ndim != 2
        or anchors.shape[1] < 3
        or anchors.dtype.kind != "f"
        or not np.isfinite(anchors[:, :3]).all()
    ):
        raise DatasetError(f"expected {path!r} to hold anchors, finite floats of shape (M, 11)")
    return anchors[:, :3].astype(np.float64)
