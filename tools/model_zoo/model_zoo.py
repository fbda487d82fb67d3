"""Every listed model once through everything: inference, training steps, export, ONNX Runtime.

    python tools/model_zoo/model_zoo.py                                        # all, on a GPU
    python tools/model_zoo/model_zoo.py --models "*tiny" --device cpu --out zoo.json
    python tools/model_zoo/model_zoo.py --reduced --device cpu --out zoo.json  # small shapes of all

Needs s4d-train, s4d-export and s4d-runtime beside s4d-core. Weights are random, see `zoo_models`.
Results are written after every part of every model. What `--out` already holds is not measured
again, so a run that was cut short goes on where it was; `--again` measures it anew. A part that
fails is noted with its reason, and the next one follows. Each export has a process of its own,
`--workers` at a time, after the measurements, which have the machine to themselves.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from zoo_compiled import compiled
from zoo_models import resized, small
from zoo_parts import Part, export_and_roll, inference, training

import s4d_core

# Samples per step beside that of the recipe (None). The offline model fits more than its two.
BATCHES: dict[str, tuple[int | None, ...]] = {
    "sparse4dv1_r101_h4_640x1600": (1, 2),
    "sparse4dv3_eva02l_640x1600_offline": (None, 6),
}


class Results:
    """The file of results: a row per model, a part of it per measurement."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path, self.again = path, again
        self.document: dict[str, Any] = {"models": {}}
        if path.is_file():
            self.document = json.loads(path.read_text())

    def wanted(self, model: str, part: str) -> bool:
        """Whether there is no figure yet."""
        return self.again or "not" in self.document["models"].get(model, {}).get(part, {"not": ""})

    def put(self, model: str, part: str, values: Part) -> None:
        """Keep a part, and write the file."""
        self.document["models"].setdefault(model, {})[part] = values
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.document, indent=1, default=str) + "\n")
        beside.replace(self.path)
        shown = {k: v for k, v in values.items() if k != "result"}
        print(time.strftime("%X"), model, part, shown, flush=True)


def attempt(work: Callable[[], Part]) -> Part:
    """The part, or why there is none; memory is given back."""
    start = time.perf_counter()
    try:
        part = work()
    except Exception as error:
        traceback.print_exc()
        part = {"not": _reason(error)}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    part["all_seconds"] = round(time.perf_counter() - start, 1)
    return part


def measure(
    results: Results, names: list[str], args: argparse.Namespace, parts: tuple[str, ...]
) -> None:
    """Inference (plain and compiled) and training, one model after the other."""
    for part in parts:
        for name in names:
            config = configured(name, args)
            if part == "inference" and results.wanted(name, part):
                work = attempt(lambda c=config: inference(c, args.device, args.repeat))
                results.put(name, part, work)
            if part == "compiled" and results.wanted(name, part):
                work = attempt(lambda c=config: compiled(c, args.device, args.repeat))
                results.put(name, part, work)
            for batch in BATCHES.get(name, (None,)) if part == "training" else ():
                key = "training" if batch is None else f"training, batch {batch}"
                if results.wanted(name, key):
                    work = attempt(
                        lambda c=config, b=batch: training(c, args.device, b, args.repeat)
                    )
                    results.put(name, key, work)


def exported_parts(args: argparse.Namespace) -> list[str]:
    """Of the processes that export, in the order in which they come."""
    return ["export", *args.engines, "rounding"]


def export_all(results: Results, names: list[str], args: argparse.Namespace) -> None:
    """Exports and roll-outs in processes of their own; what each has written is taken over."""
    names = [n for n in names if any(results.wanted(n, p) for p in exported_parts(args))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        taken: dict[str, set[str]] = {name: set() for name in names}

        def take(name: str) -> None:
            file = Path(folder) / f"{name}.json"
            if file.is_file():
                row = json.loads(file.read_text())["models"][name]
                for part in set(row) - taken[name]:
                    taken[name].add(part)
                    results.put(name, part, row[part])

        def run(name: str) -> int:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            command += ["--out", str(Path(folder) / f"{name}.json")]
            return subprocess.run(command, stdout=subprocess.DEVNULL).returncode

        jobs = {pool.submit(run, name): name for name in names}
        waiting = set(jobs)
        while waiting:
            waiting = wait(waiting, timeout=2.0, return_when=FIRST_COMPLETED).not_done
            for name in names:
                take(name)
        for job, name in jobs.items():
            missing = [p for p in exported_parts(args) if p not in taken[name]]
            for part in missing[:1]:
                results.put(name, part, {"not": f"its process ended with code {job.result()}"})


def export_one(results: Results, name: str, args: argparse.Namespace) -> None:
    """The body of such a process."""
    at = exported_parts(args)

    def done(part: str, values: Part) -> None:
        results.put(name, at.pop(at.index(part)), values)

    try:
        export_and_roll(
            configured(name, args), args.device, args.engines, args.frames, args.threads, done
        )
    except Exception as error:
        traceback.print_exc()
        results.put(name, at[0], {"not": _reason(error)})


def configured(name: str, args: argparse.Namespace) -> s4d_core.Sparse4DConfig:
    """The model as the options ask for it."""
    config = s4d_core.get_config(name)
    if args.reduced:
        config = small(config)
    if args.image:
        height, width = (int(n) for n in args.image.split("x"))
        config = resized(config, (height, width))
    return config


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _work(name: str) -> int:
    """A guess at the FLOPs, for order alone."""
    config = s4d_core.get_config(name)
    height, width = config.image.size
    depth = 10 if isinstance(config.backbone, s4d_core.EvaConfig) else 2
    return height * width * depth


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--models", default="*", help="pattern of names")
    parser.add_argument("--skip", default="", help="comma-separated names")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--reduced", action="store_true", help="few channels and blocks")
    parser.add_argument("--image", default="", help="HEIGHTxWIDTH instead of the models' own")
    parser.add_argument(
        "--parts", default="training,inference,compiled,export", help="in this order"
    )
    parser.add_argument("--engines", default="", help="of the roll-outs; comma-separated")
    parser.add_argument("--frames", type=int, default=4, help="of the roll-out")
    parser.add_argument("--repeat", type=int, default=10, help="frames and steps that are timed")
    parser.add_argument("--workers", type=int, default=3, help="exports at the same time")
    parser.add_argument("--threads", type=int, default=4, help="of each of them")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--out", default="model_zoo.json")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cuda" if args.device == "cuda" else "cpu"
    args.engines = (args.engines or f"onnxruntime-{device}").split(",")
    results = Results(Path(args.out), args.again)
    if args.only:
        export_one(results, args.only, args)
        return 0
    names = [n for n in s4d_core.list_models(args.models) if n not in args.skip.split(",")]
    names.sort(key=lambda n: (n not in BATCHES, -_work(n)))
    parts = args.parts.split(",")
    measure(results, names, args, tuple(p for p in parts if p != "export"))
    if "export" in parts:
        export_all(results, sorted(names, key=_work, reverse=True), args)
    rows = results.document["models"].values()
    return int(any("not" in values for row in rows for values in row.values()))


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
