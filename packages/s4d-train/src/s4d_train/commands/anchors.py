"""`s4d-train anchors`: seeded K-means anchors of a converted index."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "anchors", help="K-means anchors of a converted index", description=__doc__
    )
    parser.add_argument("index", help="folder of the converted index")
    parser.add_argument("--out", required=True, help=".npy file to write, (count, 11) float64")
    parser.add_argument("--split", help="train, mini_train, ...; default: everything")
    parser.add_argument("--count", type=int, default=900, help="number of anchors (900)")
    parser.add_argument("--max-distance", type=float, default=55.0, help="metres (55)")
    parser.add_argument("--seed", type=int, default=0, help="of the first centres (0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Cluster, write, say where."""
    from s4d_train.data.anchors import make_anchors, save_anchors
    from s4d_train.data.index import DriveIndex

    index = DriveIndex.open(args.index)
    anchors = make_anchors(
        index, args.split, args.count, max_distance=args.max_distance, seed=args.seed
    )
    print(f"{save_anchors(anchors, args.out)}: {len(anchors)} anchors")
    return 0
