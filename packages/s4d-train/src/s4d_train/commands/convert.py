"""`s4d-train convert`: nuScenes tables to an index that loads in seconds."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "convert", help="nuScenes tables to an index that loads in seconds", description=__doc__
    )
    parser.add_argument("root", help="folder of the data set (holds samples/ and v1.0-*/)")
    parser.add_argument("--out", required=True, help="folder of the index to write")
    parser.add_argument(
        "--version",
        help="v1.0-mini, v1.0-trainval, ...; default: the only one; all: every one there at once, "
        "each into its folder in OUT",
    )
    parser.add_argument(
        "--max-sweeps", type=int, default=10, help="LiDAR sweeps kept per sample (10)"
    )
    parser.add_argument("--check-files", action="store_true", help="every file must exist")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--no-progress", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, then say what was found."""
    from s4d_train.data.conversion import convert, convert_all

    options = {
        "max_sweeps": args.max_sweeps,
        "workers": args.workers,
        "files": args.check_files,
        "progress": not args.no_progress,
    }
    if args.version == "all":
        indices = convert_all(args.root, args.out, **options)
    else:
        indices = [convert(args.root, args.out, args.version, **options)]
    for index in indices:
        splits = ", ".join(f"{k} {len(index.samples(k))}" for k in sorted(index.splits))
        print(
            f"{index.folder}: {index.version}, {len(index.scenes)} scenes, {len(index)} samples, "
            f"{len(index.label)} boxes; splits: {splits or 'none'}"
        )
    return 0
