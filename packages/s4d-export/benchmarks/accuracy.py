"""One table: the metrics of a checkpoint through torch and through its artifacts.

    python benchmarks/accuracy.py CHECKPOINT --data DIR --calibration DIR --folder out
    python benchmarks/accuracy.py CHECKPOINT --synthetic --folder out

Exports float32, float16 and int8 artifacts (the last calibrated on other frames), evaluates the
checkpoint in torch and every artifact on the runtime's engine with ``s4d-train eval``, and prints
one row per program with its distance from torch. `--synthetic` makes the frames: the four held-out
scenes of ``s4d-train synth --scenes 20 --seed 0``, and 32 frames of another world to calibrate on.
Needs s4d-train with its extra `runtime`. Exit code 1 if a row is further from torch than allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

METRICS = ("mAP", "NDS", "AMOTA")
LIMITS = {"fp32": 0.0005, "fp16": 0.002, "int8": 0.01, "int8+fp16": 0.01}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="data set in nuScenes layout to evaluate on")
    parser.add_argument("--split", default="", help="default: validation")
    parser.add_argument("--calibration", type=Path, help="frames to calibrate on")
    parser.add_argument("--frames", type=int, default=32, help="of the calibration")
    parser.add_argument("--synthetic", action="store_true", help="make both data sets")
    parser.add_argument("--rows", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--folder", type=Path, default=Path("accuracy"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data, frames = options.data, options.calibration
    if options.synthetic:
        data, frames = synthetic(options.folder)
    if data is None or frames is None:
        parser.error("give --data and --calibration, or --synthetic")

    table = {"torch": evaluate(options.checkpoint, data, options.split, options.folder / "torch")}
    plain = options.folder / "fp32.s4d"
    for row in options.rows:
        artifact = export(row, options, frames, plain)
        size = artifact.stat().st_size / 1e6
        table[row] = evaluate(artifact, data, options.split, options.folder / row) | {"MB": size}
    print_table(table)
    (options.folder / "accuracy.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(worst(table, row) <= LIMITS[row] for row in options.rows) else 1


def export(row: str, options: argparse.Namespace, frames: Path, plain: Path) -> Path:
    """The artifact of one row; the int8 ones share a calibration."""
    from s4d_export.cli import main as export_command

    path = options.folder / f"{row}.s4d"
    if row in ("fp32", "fp16"):
        call(export_command, "onnx", options.checkpoint, "-o", path, "--precision", row)
        return path
    rest = "fp16" if row == "int8+fp16" else "fp32"
    other = options.folder / "int8.s4d"
    known = ["--calibration", other] if row != "int8" and other.exists() else []
    source = plain if plain.exists() else options.checkpoint
    given = known or ["--data", frames, "--frames", options.frames]
    call(export_command, "quantize", source, "-o", path, "--rest", rest, *given)
    return path


def evaluate(source: Path, data: Path, split: str, out: Path) -> dict[str, float]:
    """The summary of ``s4d-train eval``."""
    from s4d_train.cli import main as train_command

    where = ["--split", split] if split else []
    call(
        train_command,
        *("eval", source, "--data", data, *where, "--out", out, "--no-progress", "--workers", 1),
    )
    return json.loads((out / "metrics.json").read_text())["summary"]


def synthetic(folder: Path) -> tuple[Path, Path]:
    """The held-out scenes alone (a scene depends on the seed and its name), and other frames."""
    from s4d_train.cli import main as train_command

    held_out, other = folder / "held_out", folder / "calibration"
    for path, words in (
        (held_out, ("--scenes", 4, "--val-scenes", 4, "--seed", 0)),
        (other, ("--scenes", 2, "--val-scenes", 0, "--seed", 5, "--frames", 16)),
    ):
        if not path.exists():
            call(train_command, "synth", "--out", path, "--split", "trainval", *words)
    return held_out, other


def worst(table: dict[str, dict[str, float]], row: str) -> float:
    """Largest distance from torch over the metrics."""
    return max(abs(table[row][name] - table["torch"][name]) for name in METRICS)


def print_table(table: dict[str, dict[str, float]]) -> None:
    """Markdown."""
    print("\n| program | MB | " + " | ".join(METRICS) + " | largest distance | allowed |")
    print("|---" * (5 + len(METRICS)) + "|")
    for row, values in table.items():
        cells = [f"{values[name]:.4f}" for name in METRICS]
        size = f"{values['MB']:.1f}" if "MB" in values else ""
        limit = str(LIMITS[row]) if row in LIMITS else ""
        print(f"| {row} | {size} | {' | '.join(cells)} | {worst(table, row):.4f} | {limit} |")


def call(command, *words: object) -> None:
    """Run a command of ours; leave with its exit code if it fails."""
    if status := command([str(word) for word in words]):
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
