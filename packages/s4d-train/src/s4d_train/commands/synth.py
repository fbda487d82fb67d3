"""`s4d-train synth`: write a synthetic data set in nuScenes layout."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}") from None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "synth", help="write a synthetic data set in nuScenes layout", description=__doc__
    )
    parser.add_argument("--out", required=True, help="folder to write; must not exist")
    parser.add_argument("--scenes", type=int, default=10, help="number of scenes (10)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another town (0)")
    parser.add_argument(
        "--image-size",
        type=_size,
        default=(800, 450),
        metavar="WxH",
        help="of the cameras, width first (800x450)",
    )
    parser.add_argument("--frames", type=int, default=40, help="key frames per scene (2 Hz)")
    parser.add_argument(
        "--split",
        choices=("auto", "mini", "trainval"),
        default="auto",
        help="whose scene names and version are used; auto: mini up to ten scenes",
    )
    parser.add_argument("--val-scenes", type=int, help="default: a fifth, at least one")
    parser.add_argument("--sweeps", type=int, default=0, help="LiDAR sweeps between key frames")
    parser.add_argument("--density", type=float, default=1.0, help="factor on object numbers")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--no-progress", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, then say where it is."""
    from s4d_train.synth import SynthConfig, generate

    config = SynthConfig(
        scenes=args.scenes,
        seed=args.seed,
        image_size=args.image_size,
        frames=args.frames,
        split=args.split,
        val_scenes=args.val_scenes,
        sweeps=args.sweeps,
        density=args.density,
    )
    folder = generate(args.out, config, args.workers, progress=not args.no_progress)
    print(f"{folder}: {config.scenes} scenes of {config.frames} key frames, {config.version}")
    return 0
