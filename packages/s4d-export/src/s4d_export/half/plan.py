"""Which parts of the graph compute in half precision, and why: the precision plan, as data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from ..errors import QuantizationError

__all__ = ["DEFAULT_PLAN", "PrecisionPlan", "Rule", "load_plan"]

HalfOrFull = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class Rule:
    """Nodes whose name matches `nodes` (shell pattern) compute in `precision`, for a reason."""

    nodes: str
    precision: HalfOrFull
    reason: str


@dataclass(frozen=True, repr=False)
class PrecisionPlan:
    """Rules in order; the last that matches a node decides, and without one it is float32.

    Node names are ``<module path>/<operator>`` (see ``naming``). Nodes that only move data
    (Reshape, Concat, ...) and match no rule follow their inputs, so no cast is spent on them.
    """

    rules: tuple[Rule, ...]

    def __repr__(self) -> str:  # short: it is a default in signatures that `help` prints
        return f"PrecisionPlan({len(self.rules)} rules)"

    def rule_for(self, node_name: str) -> Rule | None:
        """The rule that decides about a node, if any does."""
        for rule in reversed(self.rules):
            if fnmatchcase(node_name, rule.nodes):
                return rule
        return None

    def excluding(self, nodes: Iterable[str], reason: str) -> PrecisionPlan:
        """A plan that keeps further nodes (names or patterns) in float32."""
        return PrecisionPlan((*self.rules, *(Rule(name, "fp32", reason) for name in nodes)))

    def to_json(self) -> str:
        """The plan as JSON text, one rule a line."""
        lines = [json.dumps(vars(rule)) for rule in self.rules]
        return '{"rules": [\n ' + ",\n ".join(lines) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """Read the result of ``to_json``.

        Raises:
            QuantizationError: not JSON, or not a list of complete rules.
        """
        try:
            entries: list[Any] = json.loads(text)["rules"]
            rules = tuple(Rule(**entry) for entry in entries)
        except (ValueError, KeyError, TypeError) as error:
            raise QuantizationError(
                f'expected a precision plan {{"rules": [{{"nodes", "precision", "reason"}}]}}: '
                f"{error}"
            ) from None
        for rule in rules:
            if rule.precision not in ("fp16", "fp32"):
                raise QuantizationError(
                    f"expected precision fp16 or fp32 in the plan, got {rule.precision!r}"
                )
        return cls(rules)


def load_plan(path: str | None, precision: str) -> PrecisionPlan | None:
    """The plan for a precision: none for fp32, else that of a file or the built-in one.

    Raises:
        QuantizationError: the file cannot be read, is no plan, or comes with fp32.
    """
    if precision != "fp16":
        if path:
            raise QuantizationError(f"expected --precision fp16 with --plan, got {precision}")
        return None
    if path is None:
        return DEFAULT_PLAN
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizationError(f"cannot read the precision plan {path!r}: {error}") from None
    return PrecisionPlan.from_json(text)


DEFAULT_PLAN = PrecisionPlan(
    (
        Rule("backbone*", "fp16", "convolutions: most of the time, values of moderate range"),
        # Deformable convolution: a half holds positions in an image to a twentieth of a pixel.
        Rule("backbone*.conv2*", "fp32", "sampling positions of deformable convolution"),
        Rule("backbone*.conv2/Conv*", "fp16", "the same layer where it is a plain convolution"),
        Rule("backbone*.conv2/MatMul*", "fp16", "deformable convolution after sampling"),
        Rule("neck*", "fp16", "convolutions"),
        Rule("head.instance_attention*", "fp16", "matrix products of attention"),
        Rule("head.layers.*_attention*", "fp16", "attention; the query is scaled before q k^T"),
        Rule("head.layers.*.attention_norm*", "fp16", "normalisation between half products"),
        Rule(
            "head.layers.*.aggregation/DeformableAggregation*",
            "fp16",
            "features in half (half the memory traffic); locations and weights stay float32, "
            "sums are formed in float32",
        ),
        Rule("head.layers.*.aggregation.output*", "fp16", "matrix product"),
        Rule("head.layers.*.ffn*", "fp16", "matrix products and their normalisation"),
        # What follows matches no rule above; it is written down because it is meant.
        Rule("head.anchor_encoder*", "fp32", "boxes in metres: centimetres at 50 m need 13 bits"),
        Rule("head.layers.*.key_points*", "fp32", "points in metres, exp of sizes"),
        Rule(
            "head.layers.*.camera_encoder*",
            "fp32",
            "its input are raw projection matrices, values of thousands",
        ),
        Rule("head.layers.*.refinement*", "fp32", "corrections of boxes, scores, exp and log"),
    )
)
