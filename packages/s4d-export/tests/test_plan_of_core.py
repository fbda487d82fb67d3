"""The half-precision plan of exported graphs and that of `s4d_core.compile_inference` are one."""

from __future__ import annotations

from s4d_core.inference.precision import HALF_MODULES
from s4d_export.half.plan import DEFAULT_PLAN


def test_the_same_modules_are_half() -> None:
    """Rules about single operators ("module/operator") exist in graphs only."""
    half = {rule.nodes for rule in DEFAULT_PLAN.rules if rule.precision == "fp16"}
    assert {name for name in half if "/" not in name} == {rule.modules for rule in HALF_MODULES}
