"""One table: the metrics of a checkpoint through torch and through its artifacts.

    python benchmarks/accuracy.py CHECKPOINT --data DIR --calibration DIR --folder out
    python benchmarks/accuracy.py CHECKPOINT --synthetic --folder out --jobs 5

Exports float32, float16 and int8 artifacts (the last calibrated on other frames), evaluates the
checkpoint in torch and every artifact on the runtime's engines with ``s4d-train eval``, and prints
one row per program with its distance from torch. `--backends` names more engines than the CPU's;
ONNX Runtime on CUDA computes what lies between Q and DQ in float.

`--synthetic` makes the frames: sixteen scenes of the world ``s4d-train synth --seed 0``, of which
no training recipe reads a scene, and 32 frames of another world to calibrate on. Sixteen, because
AMOTA moves by single tracks, and a near tie that rounding decides moves a few scenes by a
thousandth (docs/benchmarks.md; table of the first four: `--scenes 4`). Needs s4d-train with its
extra `runtime`. Exit code 1 if a row is further from torch than allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

METRICS = ("mAP", "NDS", "AMOTA")
SHOWN = (*METRICS, "IDS")
LIMITS = {"fp32": 0.0005, "fp16": 0.002, "int8": 0.01, "int8+fp16": 0.01}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="data set in nuScenes layout to evaluate on")
    parser.add_argument("--split", default="", help="default: validation")
    parser.add_argument("--calibration", type=Path, help="frames to calibrate on")
    parser.add_argument("--frames", type=int, default=32, help="of the calibration")
    parser.add_argument("--synthetic", action="store_true", help="make both data sets")
    parser.add_argument("--scenes", type=int, default=16, help="of --synthetic")
    parser.add_argument("--rows", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu"])
    parser.add_argument(
        "--torch-devices",
        nargs="+",
        default=["cpu"],
        help="the first is the reference; others show what another processor's rounding does",
    )
    parser.add_argument("--jobs", type=int, default=1, help="programs side by side")
    parser.add_argument("--folder", type=Path, default=Path("accuracy"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.synthetic and (options.data is None or options.calibration is None):
        parser.error("give --data and --calibration, or --synthetic")
    plain = options.folder / "fp32.s4d"
    with ThreadPoolExecutor() as pool:  # processes of their own, so nothing waits for another
        worlds = pool.submit(synthetic, options)
        floats = [row for row in options.rows if row in ("fp32", "fp16")]
        artifacts = dict(
            zip(floats, pool.map(lambda r: export(r, options, None, plain), floats), strict=True)
        )
        data, frames = worlds.result()
    for row in options.rows:
        if row not in artifacts:
            artifacts[row] = export(row, options, frames, plain)
    first, *others = options.torch_devices
    runs = {"torch": (options.checkpoint, ["--device", first])}
    runs |= {f"torch, {name}": (options.checkpoint, ["--device", name]) for name in others}
    for backend in options.backends:
        for row, path in artifacts.items():
            label = row if backend == "onnxruntime-cpu" else f"{row}, {backend}"
            runs[label] = (path, ["--backend", backend])
    where = ["--data", data, *(["--split", options.split] if options.split else [])]
    table = evaluate(runs, where, options.folder, options.jobs)
    print_table(table)
    (options.folder / "accuracy.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(worst(table, row) <= limit(row) for row in table) else 1


def export(row: str, options: argparse.Namespace, frames: Path | None, plain: Path) -> Path:
    """The artifact of one row; the int8 ones share a calibration."""
    path = options.folder / f"{row}.s4d"
    if row in ("fp32", "fp16"):
        call("s4d_export", "onnx", options.checkpoint, "-o", path, "--precision", row)
        return path
    rest = "fp16" if row == "int8+fp16" else "fp32"
    other = options.folder / "int8.s4d"
    known = ["--calibration", other] if row != "int8" and other.exists() else []
    source = plain if plain.exists() else options.checkpoint
    given = known or ["--data", frames, "--frames", options.frames]
    call("s4d_export", "quantize", source, "-o", path, "--rest", rest, *given)
    return path


def evaluate(
    runs: dict[str, tuple[Path, list[str]]], where: list[object], folder: Path, jobs: int
) -> dict[str, dict[str, float]]:
    """The summaries of ``s4d-train eval``, `jobs` at a time, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(jobs, len(runs), len(cores))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for job in range(jobs):
        shares.put(cores[job::jobs])

    def one(item: tuple[str, tuple[Path, list[str]]]) -> dict[str, float]:
        label, (source, words) = item
        out, share = folder / label.replace(", ", "-"), shares.get()
        given = (source, *where, "--out", out, *words, "--no-progress", "--workers", 1)
        try:
            call("s4d_train", "eval", *given, cores=share)
        finally:
            shares.put(share)
        found = json.loads((out / "metrics.json").read_text())["summary"]
        shown = ", ".join(f"{name} {found[name]:.4f}" for name in METRICS)
        print(f"{label}: {shown}", flush=True)  # a long run that is stopped leaves what it has
        return found | ({"MB": source.stat().st_size / 1e6} if source.is_file() else {})

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(runs, pool.map(one, runs.items()), strict=True))


def synthetic(options: argparse.Namespace) -> tuple[Path, Path]:
    """The frames to evaluate and to calibrate on, made if they are not given.

    The held-out scenes are made alone: a scene depends on the seed and its name only.
    """
    if not options.synthetic:
        return options.data, options.calibration
    held_out, other = options.folder / "held_out", options.folder / "calibration"
    scenes = options.scenes
    for path, words in (
        (other, ("--scenes", 2, "--val-scenes", 0, "--seed", 5, "--frames", 16)),
        (held_out, ("--scenes", scenes, "--val-scenes", scenes, "--seed", 0)),
    ):
        if not path.exists():
            call("s4d_train", "synth", "--out", path, "--split", "trainval", *words)
    return held_out, other


def limit(row: str) -> float:
    """How far a row may be from torch; `row` may name an engine too."""
    return LIMITS.get(row.split(", ")[0], float("inf"))


def worst(table: dict[str, dict[str, float]], row: str) -> float:
    """Largest distance from torch over the metrics."""
    return max(abs(table[row][name] - table["torch"][name]) for name in METRICS)


def print_table(table: dict[str, dict[str, float]]) -> None:
    """Markdown."""
    print("\n| program | MB | " + " | ".join(SHOWN) + " | largest distance | allowed |")
    print("|---" * (4 + len(SHOWN)) + "|")
    for row, values in table.items():
        cells = [f"{values[name]:.4f}" for name in METRICS]
        cells.append(f"{values['IDS']:.0f}")
        size = f"{values['MB']:.1f}" if "MB" in values else ""
        allowed = "" if row.startswith("torch") else str(limit(row))
        print(f"| {row} | {size} | {' | '.join(cells)} | {worst(table, row):.4f} | {allowed} |")


def call(module: str, *words: object, cores: list[int] | None = None) -> None:
    """Run a command of ours in a process of its own; leave with its exit code if it fails."""
    line = [sys.executable, "-m", module, *(str(word) for word in words)]
    process = subprocess.Popen(line)
    if cores:
        os.sched_setaffinity(process.pid, cores)
    if status := process.wait():
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
