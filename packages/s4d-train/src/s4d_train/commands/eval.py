"""`s4d-train eval`: metrics of a checkpoint, an artifact or result files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `eval`."""
    parser = subparsers.add_parser(
        "eval",
        help="detection and tracking metrics of a checkpoint or an artifact",
        description=(
            "nuScenes detection and tracking metrics. SOURCE is a checkpoint folder, an artifact "
            "NAME.s4d, or a folder with the result files of an earlier eval. Several devices: "
            "torchrun --nproc-per-node N -m s4d_train eval SOURCE ..."
        ),
    )
    parser.add_argument("source", help="checkpoint folder, NAME.s4d, or folder of result files")
    parser.add_argument(
        "--data", required=True, help="data set in nuScenes layout, or a converted index of it"
    )
    parser.add_argument("--version", default="", help="such as v1.0-mini (default: the only one)")
    parser.add_argument(
        "--split", default="", help="such as mini_val; 'all' for every scene (default: validation)"
    )
    parser.add_argument("--scenes", nargs="+", default=[], help="scene names, instead of a split")
    parser.add_argument(
        "--out", default="", help="output folder (default: out/eval/NAME; of RUN/final: RUN)"
    )
    parser.add_argument("--batch", type=int, default=1, help="scenes side by side (checkpoints)")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="loader processes (checkpoints; default: one per core, at most 4)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of backbone and neck (checkpoints)",
    )
    parser.add_argument("--backend", default="auto", help="engine (artifacts)")
    parser.add_argument("--device", default="", help="such as cpu or cuda:1 (default: automatic)")
    parser.add_argument(
        "--tracking-threshold",
        type=float,
        default=0.2,
        help="boxes with a lower score are not tracked (default: 0.2)",
    )
    parser.add_argument("--no-tracking", action="store_true", help="detection metrics only")
    parser.add_argument("--no-metrics", action="store_true", help="only write the result files")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs `eval`."""
    from ..errors import EvaluationError
    from ..evaluation.run import EvalOptions, evaluate
    from ..evaluation.table import metrics_table
    from ..trainer.ranks import started

    source = Path(args.source)
    if not source.exists():
        raise EvaluationError(
            f"there is no {source}; give a checkpoint folder, a .s4d artifact or a folder of "
            "result files."
        )
    options = EvalOptions(
        data=Path(args.data),
        out=Path(args.out or Path("out") / "eval" / _name(source)),
        version=args.version,
        split=args.split,
        scenes=tuple(args.scenes),
        batch=args.batch,
        workers=args.workers,
        precision=args.precision,
        backend=args.backend,
        tracking=not args.no_tracking,
        tracking_threshold=args.tracking_threshold,
        metrics=not args.no_metrics,
        show=not args.no_progress,
    )
    with started(args.device) as ranks:
        merged = evaluate(source, options, ranks)
        if merged:
            print(metrics_table(merged))
        if ranks.first:
            print(options.out)
    return 0


def _name(source: Path) -> str:
    """What the results of a source are called: every run ends in a folder `final`."""
    path = source.resolve()
    return path.parent.name if path.name == "final" else path.stem
