"""The main job, start to end: a drive, a checkpoint, one graph, tracked boxes, a film, metrics.

    python tools/demo.py                  # on a synthetic drive made on the spot
    python tools/demo.py --data DIR       # on a data set in nuScenes layout

The checkpoint in demo/ is `sparse4dv3_tiny`, trained on the synthetic world (docs/benchmarks.md
says how): on real pictures it runs, but it has never seen any.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "sparse4dv3_tiny"
SEED = 2026


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="data set in nuScenes layout")
    parser.add_argument("--frames", type=int, default=12, help="key frames of the drive (12)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="output folder")
    options = parser.parse_args()
    began = time.perf_counter()
    world = options.data or synthetic_drive(options.out, options.frames)
    artifact = exported(options.out)
    results = options.out / "drive"
    command(
        run_command,
        *("drive", world, "--artifact", artifact, "--out", results, "--render"),
        *(("--limit", options.frames) if options.data else ("--annotations",)),
    )
    if options.data is None:
        print_metrics(artifact, world, options.out / "metrics")
    pictures = results / "pictures"
    seconds = time.perf_counter() - began
    print(
        f"\nThe boxes are in {results}, the pictures and the film in {pictures} ({seconds:.0f} s)."
    )


def synthetic_drive(out: Path, frames: int) -> Path:
    """One scene of the synthetic world; an earlier demo's is used again."""
    world = out / f"world_{frames}"
    if not world.exists():
        command(
            train_command,
            *("synth", "--out", world, "--scenes", 1, "--val-scenes", 0, "--frames", frames),
            *("--seed", SEED),
        )
    return world


def exported(out: Path) -> Path:
    """The artifact of the demo's checkpoint, exported anew each time."""
    artifact = out / "sparse4dv3_tiny.s4d"
    command(export_command, "onnx", CHECKPOINT, "-o", artifact)
    return artifact


def print_metrics(artifact: Path, world: Path, out: Path) -> None:
    """The nuScenes metrics of the artifact on the drive, over the classes that occur."""
    command(
        train_command,
        *("eval", artifact, "--data", world, "--split", "all", "--out", out, "--no-progress"),
    )
    summary = json.loads((out / "metrics.json").read_text())["summary"]
    print("  ".join(f"{name} {value:.3f}" for name, value in summary.items()))


def command(main: Callable[[Sequence[str]], int], *words: object) -> None:
    """Run a command of ours as its console script would."""
    arguments = [str(word) for word in words]
    print("\n$", main.__name__.removesuffix("_command").join(("s4d-", " ")) + " ".join(arguments))
    if status := main(arguments):
        raise SystemExit(status)


def run_command(arguments: Sequence[str]) -> int:
    from s4d_runtime.cli import main

    return main(arguments)


def train_command(arguments: Sequence[str]) -> int:
    from s4d_train.cli import main

    return main(arguments)


def export_command(arguments: Sequence[str]) -> int:
    from s4d_export.cli import main

    return main(arguments)


if __name__ == "__main__":
    main()
