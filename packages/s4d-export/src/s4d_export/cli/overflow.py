"""``s4d-export overflow``: does float16 hold every tensor of a plan, and if not, which one?"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..half.overflow import OverflowReport

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand. Imports nothing heavy."""
    command = commands.add_parser(
        "overflow", help="find tensors that leave the range of float16, and a plan that cures it"
    )
    command.add_argument("source", help="checkpoint folder, or an fp32 artifact NAME.s4d")
    command.add_argument("--plan", metavar="JSON", help="plan to examine (default: the built-in)")
    command.add_argument("--data", metavar="DIR", help="nuScenes layout (default: random frames)")
    command.add_argument("--frames", type=int, default=4, metavar="N")
    command.add_argument("--seed", type=int, default=0, help="of the random frames")
    command.add_argument(
        "--tolerance", type=float, default=0.02, help="relative error of the outputs (0.02)"
    )
    command.add_argument("--top", type=int, default=12, help="rows of the table (12)")
    command.add_argument("--no-bisect", action="store_true", help="keep the whole proposal")
    command.add_argument("-o", "--output", metavar="JSON", help="write the plan that is right")
    command.add_argument("--json", metavar="FILE", help="write all figures")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from ..artifact import check_destination
    from ..errors import VerificationError
    from ..frames import nuscenes_frames, random_frames
    from ..half.conversion import check_plan
    from ..half.overflow import find_overflow
    from ..half.plan import load_plan
    from ..verification.rollout import record_feeds
    from .source import load_source
    from .text import tell, write_text

    for path in (options.output, options.json):
        if path:
            check_destination(path)
    if options.frames < 1:
        raise VerificationError(f"expected --frames of at least 1, got {options.frames}")
    plan = load_plan(options.plan, "fp16")
    assert plan is not None
    tell(f"overflow: loading {options.source}; a checkpoint is traced first")
    source = load_source(options.source)
    if options.plan:  # the built-in one has rules for parts that not every model has
        check_plan(source.graph, plan)
    if options.data:
        frames = nuscenes_frames(source.config, options.data, options.frames)
    else:
        frames = random_frames(source.config, options.frames, options.seed)
    feeds = record_feeds(source.graph, source.config, frames)
    report = find_overflow(
        *(source.graph, plan, feeds, options.tolerance, not options.no_bisect),
        lambda text: tell(f"overflow: {text}"),
    )
    print(_format(report, len(feeds), options.top))
    if options.json:
        write_text(options.json, json.dumps(report.to_dict(), indent=1) + "\n")
    good = plan if report.right else report.plan if report.cured else None
    if options.output and good is not None:
        write_text(options.output, good.to_json())
        print(f"{options.output}: a plan that is right on these frames")
    return 0 if report.right else 1


def _format(report: OverflowReport, frames: int, top: int) -> str:
    lines = [f"{'tensor':52} {'peak':>10} {'headroom':>9} {'over':>8} {'to zero':>8} {'lost':>8}"]
    lines += [
        f"{row.name:52} {row.peak:10.4g} {row.headroom:9.3g} {row.over:8.2%} {row.flushed:8.2%} "
        f"{row.rounding:8.1e}"
        for row in report.ranges[:top]
    ]
    lines.append(
        f"{len(report.ranges)} tensors and constants in float16, {len(report.offenders)} out of "
        f"range, over {frames} frames"
    )
    lost = sorted(report.offenders, key=lambda row: (row.over == 0, row.headroom))
    lines += [f"  out of range: {row.name} (module {row.module})" for row in lost[:top]]
    if report.right:
        lines.append(f"RIGHT: the plan is within {report.error:.2g} of float32")
        return "\n".join(lines)
    lines.append(f"WRONG: {report.reason}")
    if not report.cured:
        lines.append(f"no set of exclusions was found in {report.tests} trials")
        return "\n".join(lines)
    lines.append(
        f"{len(report.needed)} of {len(report.proposed)} proposed exclusions suffice "
        f"({report.tests} trials), error {report.error:.2g}:"
    )
    lines += [f"  {name}" for name in report.needed]
    lines.append("modules: " + ", ".join(report.modules))
    return "\n".join(lines)
