"""Find what float16 cannot hold, name its PyTorch module, and prove the exclusions that cure it.

1. Ranges of all tensors that a plan puts into float16, measured in float32 on given frames.
2. The proposal: every node that makes or reads a tensor or constant out of range goes to float32.
3. The proof: the plan with these exclusions is emulated with every float16 result rounded and
   compared with float32. If it is not right yet, the first tensors that go astray join.
4. The bisection: exclusions without which the graph stays right are dropped again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import VerificationError
from ..graph.naming import module_of
from ..graph.nearness import relative_error
from ..graph.session import GraphSession
from ..graph.surgery import constant_names, feature_tensors, with_outputs
from .conversion import to_half
from .emulation import emulate_half, half_tensors
from .plan import PrecisionPlan
from .ranges import TensorRange, constant_ranges, measure_ranges

__all__ = ["OverflowReport", "find_overflow"]

Feeds = Mapping[str, NDArray[Any]]
LOST = 1e-2  # relative rounding error from which a tensor counts as out of range (normal: 3e-4)
ROUNDS = 4  # how often the proposal may grow
STRAYS = 4  # by how many tensors each time


@dataclass
class OverflowReport:
    """Result of ``find_overflow``.

    Attributes:
        right: the plan as given is right on these frames.
        reason: what was wrong with it, "" if nothing.
        ranges: all float16 tensors and constants, least headroom first.
        offenders: those out of range.
        proposed: nodes to keep in float32; ``modules`` are theirs.
        cured: the plan without them is right; ``plan`` is that plan.
        needed: nodes left after bisection.
        error: largest relative error of the checked tensors with the final plan.
        tests: how many plans were run.
    """

    right: bool
    reason: str
    ranges: list[TensorRange]
    offenders: list[TensorRange]
    proposed: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    cured: bool = False
    needed: list[str] = field(default_factory=list)
    plan: PrecisionPlan | None = None
    error: float = 0.0
    tests: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        result = asdict(self)
        result["plan"] = None if self.plan is None else [vars(r) for r in self.plan.rules]
        for row in [*result["ranges"], *result["offenders"]]:
            row["headroom"] = 65504.0 / row["peak"] if row["peak"] else None
        return result


def find_overflow(
    model: onnx.ModelProto,
    plan: PrecisionPlan,
    feeds: Iterable[Feeds],
    tolerance: float = 0.02,
    bisect: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> OverflowReport:
    """Examine a plan on frames and, if it fails there, find exclusions that suffice.

    Args:
        model: the float32 graph.
        feeds: complete inputs, one entry per frame (``verification.rollout.record_feeds``).
        tolerance: largest relative error of the pyramid features and of the graph's outputs,
            rows in order of size, between the emulated and the float32 graph.
        progress: is told what happens.

    Raises:
        VerificationError: no frame was given, or the float32 graph itself is not finite.
    """
    frames = list(feeds)
    if not frames:
        raise VerificationError("expected at least one frame to search on, got none")
    trial = _Trial(model, frames, tolerance)
    progress("ranges of the float16 tensors")
    half = trial.originals(plan)
    ranges = measure_ranges(model, half, frames)
    ranges += constant_ranges(model, half & constant_names(model))
    ranges.sort(key=lambda row: row.headroom)
    offenders = [row for row in ranges if row.over > 0 or not row.rounding < LOST]
    progress("the plan as it is")
    reason = trial.fault(plan)
    report = OverflowReport(not reason, reason, ranges, offenders, error=trial.error)
    if reason:
        _cure(trial, plan, report, bisect, progress)
    report.tests = trial.tests
    return report


def _cure(
    trial: _Trial,
    plan: PrecisionPlan,
    report: OverflowReport,
    bisect: bool,
    progress: Callable[[str], None],
) -> None:
    proposed = trial.touching(plan, {row.name for row in report.offenders})
    why = "leaves the range of float16"
    for _ in range(ROUNDS):
        progress(f"{len(proposed)} nodes in float32")
        if proposed and not trial.fault(plan.excluding(proposed, why)):
            report.cured = True
            break
        strays = trial.strays(plan.excluding(proposed, why))
        more = trial.touching(plan, strays) - proposed
        if not more:
            break
        proposed |= more
    order = [node.name for node in trial.model.graph.node]
    report.proposed = [name for name in order if name in proposed]
    report.needed = list(report.proposed)
    if report.cured and bisect:
        report.needed = _smallest(trial, plan, report.needed, why, progress)
    report.modules = list(dict.fromkeys(module_of(name) for name in report.needed))
    report.plan = plan.excluding(report.needed, why)
    trial.fault(report.plan)
    report.error = trial.error


def _smallest(
    trial: _Trial,
    plan: PrecisionPlan,
    nodes: list[str],
    why: str,
    progress: Callable[[str], None],
) -> list[str]:
    """Drop halves, quarters and so on while the graph stays right without them."""
    kept, size = list(nodes), max(1, len(nodes) // 2)
    while size:
        start = 0
        while start < len(kept) and len(kept) > 1:
            rest = kept[:start] + kept[start + size :]
            progress(f"{len(rest)} nodes in float32")
            if rest and not trial.fault(plan.excluding(rest, why)):
                kept = rest
            else:
                start += size
        size //= 2
    return kept


class _Trial:
    """Runs plans against float32 on the same frames."""

    def __init__(self, model: onnx.ModelProto, frames: list[Feeds], tolerance: float) -> None:
        self.model = model
        self.frames = frames
        self.tolerance = tolerance
        self.tests = 0
        self.error = 0.0
        floats = [v.name for v in model.graph.output if v.type.tensor_type.elem_type == 1]
        self.checked = [*feature_tensors(model), *floats]
        session = GraphSession(with_outputs(model, self.checked))
        self.truth = [session.run(frame, self.checked) for frame in frames]
        for table in self.truth:
            for name, values in table.items():
                if not np.isfinite(values).all():
                    raise VerificationError(f"{name!r} is not finite in float32 already")

    def originals(self, plan: PrecisionPlan) -> set[str]:
        """Tensors of the float32 graph that are float16, or are cast to it, under a plan."""
        known = {v.name for v in self.model.graph.input} | constant_names(self.model)
        known |= {name for node in self.model.graph.node for name in node.output}
        return {
            base
            for name in half_tensors(to_half(self.model, plan))
            for base in (name, name.removesuffix(".half"))
            if base in known
        }

    def touching(self, plan: PrecisionPlan, tensors: Collection[str]) -> set[str]:
        """Nodes that a plan computes in half precision and that make or read these tensors."""
        result = set()
        for node in self.model.graph.node:
            rule = plan.rule_for(node.name)
            if rule is None or rule.precision != "fp16":
                continue
            if not set(tensors).isdisjoint([*node.input, *node.output]):
                result.add(node.name)
        return result

    def fault(self, plan: PrecisionPlan) -> str:
        """What is wrong with a plan on these frames; "" if nothing. Sets ``error``."""
        self.tests += 1
        emulated = with_outputs(emulate_half(to_half(self.model, plan)), self.checked)
        session = GraphSession(emulated, optimise=False)
        self.error = 0.0
        for number, (frame, expected) in enumerate(zip(self.frames, self.truth, strict=True)):
            for name, values in session.run(frame, self.checked).items():
                if not np.isfinite(values).all():
                    self.error = float("inf")
                    return f"{name!r} is not finite in frame {number}"
                error = relative_error(values, expected[name])
                self.error = max(self.error, error)
                if error > self.tolerance:
                    return f"{name!r} is off by {error:.2g} of its norm in frame {number}"
        return ""

    def strays(self, plan: PrecisionPlan) -> set[str]:
        """The first tensors, in the graph's order, that float16 spoils on the first frame."""
        half = emulate_half(to_half(self.model, plan))
        made = {name for node in half.graph.node for name in node.output}
        names = [
            name
            for node in self.model.graph.node
            for name in node.output
            if name in self.originals(plan) and name in made
        ]
        found: list[str] = []
        for start in range(0, len(names), 48):
            part = names[start : start + 48]
            expected = GraphSession(with_outputs(self.model, part)).run(self.frames[0], part)
            session = GraphSession(with_outputs(half, part), optimise=False)
            for name, values in session.run(self.frames[0], part).items():
                finite = np.isfinite(values).all()
                if not finite or relative_error(values, expected[name]) > self.tolerance:
                    found.append(name)
            if len(found) >= STRAYS:
                break
        return set(found[:STRAYS])
