"""The half-precision plan of exported graphs and that of `s4d_core.compile_inference` are one."""

from __future__ import annotations

import pytest

from s4d_core.inference.precision import HALF_MODULES
from s4d_export.half.plan import DEFAULT_PLAN, PrecisionPlan, Rule


def test_the_same_modules_are_half() -> None:
    """Rules about single operators ("module/operator") exist in graphs only."""
    half = {rule.nodes for rule in DEFAULT_PLAN.rules if rule.precision == "fp16"}
    assert {name for name in half if "/" not in name} == {rule.modules for rule in HALF_MODULES}


@pytest.mark.parametrize(
    ("node", "precision"),
    (
        ("backbone.layer1.0.conv2/Conv", "fp16"),
        ("backbone.layer3.0.conv2/GridSample_1", "fp32"),  # positions of deformable convolution
        ("head.layers.0.aggregation/DeformableAggregation", "fp16"),
        ("head.layers.2.aggregation.camera_encoder.0/MatMul", "fp32"),
        ("head.layers.2.aggregation.key_points/Exp", "fp32"),
        ("head.layers.5.refinement.box_output/MatMul", "fp32"),
        ("head.anchor_encoder.output/MatMul", "fp32"),
        ("head.layers.5.self_attention.out_proj/MatMul", "fp16"),
    ),
)
def test_what_must_stay_in_float32(node: str, precision: str) -> None:
    rule = DEFAULT_PLAN.rule_for(node)
    assert rule is not None and rule.precision == precision


@pytest.mark.parametrize("node", ("head/TopK", "head.layers.1.aggregation/Div", "graph/Atan2"))
def test_what_no_rule_names_is_float32(node: str) -> None:
    """Projection, time, the bank and decoding: a node without a rule is not converted."""
    assert DEFAULT_PLAN.rule_for(node) is None


def test_the_last_rule_that_matches_decides() -> None:
    plan = PrecisionPlan((Rule("neck*", "fp16", "a"), Rule("neck.output*", "fp32", "b")))
    assert plan.rule_for("neck.lateral/Conv") == plan.rules[0]
    assert plan.rule_for("neck.output.0/Conv") == plan.rules[1]
    again = plan.excluding(["neck.lateral/Conv"], "c")
    assert again.rule_for("neck.lateral/Conv") == Rule("neck.lateral/Conv", "fp32", "c")
