"""`s4d-train view`: what training sees, or a results file, as pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "view", help="the data pipeline or a results file as pictures", description=__doc__
    )
    parser.add_argument("index", help="folder of the converted index")
    parser.add_argument("--out", required=True, help="folder of PNGs; .mp4 or .gif with --results")
    parser.add_argument("--root", default="", help="folder of the data set, if it moved")
    parser.add_argument("--split", help="mini_train, val, ...; default: everything")
    parser.add_argument("--frames", type=int, default=None, help="default: 6, all with --results")
    parser.add_argument("--results", help="nuScenes results JSON to draw")
    parser.add_argument("--min-score", type=float, default=0.3, help="with --results (0.3)")
    parser.add_argument(
        "--pipeline",
        choices=("train", "val"),
        default="train",
        help="with augmentation or as in evaluation (train)",
    )
    parser.add_argument(
        "--image-size",
        default="256x704",
        metavar="HxW",
        help="network input, height first (256x704)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation (0)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw, then say where."""
    from s4d_train.errors import ConfigError

    try:
        from s4d_train.view import view_results
    except ModuleNotFoundError as error:
        if error.name != "s4d_runtime":
            raise
        raise ConfigError(
            "view draws with s4d-runtime, which is not installed; install s4d-train[runtime]"
        ) from None
    from s4d_train.data import DriveIndex

    index = DriveIndex.open(args.index)
    if args.results:
        out = view_results(
            index,
            args.results,
            args.out,
            split=args.split,
            min_score=args.min_score,
            root=args.root or None,
            frames=args.frames,
            progress=not args.no_progress,
        )
        print(out)
        return 0
    count = _pipeline(args, index)
    print(f"{args.out}: {count} frames, boxes in *_boxes.png, LiDAR depth in *_depth.png")
    return 0


def _pipeline(args: argparse.Namespace, index):  # type: ignore[no-untyped-def]
    from tqdm import tqdm

    from s4d_train.data import DataConfig, Draw, DriveDataset, SequenceSampler
    from s4d_train.data.samplers import sequence_rows
    from s4d_train.errors import ConfigError
    from s4d_train.view import draw_depth, draw_sample

    try:
        height, width = (int(v) for v in args.image_size.lower().split("x"))
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise ConfigError(f"expected --image-size HEIGHTxWIDTH, got {args.image_size!r}") from None
    config = DataConfig(index=args.index, root=args.root, image_size=(height, width))
    dataset = DriveDataset(config, index, seed=args.seed)
    sequences = sequence_rows(index, args.split, config.sequence_parts)
    frames = 6 if args.frames is None else args.frames
    if args.pipeline == "train":
        sampler = SequenceSampler(sequences, 1, seed=args.seed)
        stream = iter(sampler)
        draws = [next(stream)[0] for _ in range(frames)]
    else:
        draws = [Draw(int(row), False) for rows in sequences for row in rows][:frames]
    out = Path(args.out)
    if out.suffix in (".mp4", ".gif"):
        raise ConfigError(f"{out} would be a film: give --results too, or a folder for pictures.")
    bar = tqdm(draws, desc="view", unit="frame", disable=args.no_progress)
    out.mkdir(parents=True, exist_ok=True)
    for number, draw in enumerate(bar):
        sample = dataset[draw]
        title = f"{index.scenes[index.scene[draw.row]]}  {args.pipeline} pipeline"
        name = f"{number:05d}"
        picture = draw_sample(sample, config.camera_names, config.class_names, title=title)
        picture.save(out / f"{name}_boxes.png")
        if sample.depth:
            depth = draw_depth(sample, config.camera_names, config.max_depth, title)
            depth.save(out / f"{name}_depth.png")
    return len(draws)
