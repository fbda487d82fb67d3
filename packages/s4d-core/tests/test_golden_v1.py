"""The reduced v1 models against the published code, in float64: five frames, and a single one."""

from __future__ import annotations

import pytest
from golden_family import assert_equal, family_config, family_model, roll_out, variant

FILE = "golden_v1_small.npz"
H4, H1 = "sparse4dv1_r101_h4_640x1600", "sparse4dv1_r101_h1_640x1600"


def inner(kind: str) -> bool:
    return kind.startswith(("op", "neck", "backbone", "dfa"))


@pytest.mark.parametrize(
    ("branch", "interval", "frames", "arrays"),
    [("main", "default", 5, 55), ("master", "elapsed", 3, 18)],
)
def test_h4_equals_the_reference(
    branch: str, interval: str, frames: int, arrays: int, any_op: None
) -> None:
    """Both published branches: they differ in the third frame's interval, and in nothing else."""
    model = family_model(H4, family_config(H4, refine_interval=interval)).eval()
    mine = roll_out(model, FILE, "v1small", frames, features_of=H4)
    theirs = {k: v for k, v in variant(FILE, f"{branch}_H4_64").items() if int(k[1]) < frames}
    assert assert_equal(mine, theirs, inner) == arrays


def test_h1_equals_the_reference(any_op: None) -> None:
    mine = roll_out(family_model(H1).eval(), FILE, "v1small", 1, features_of=H4)
    assert assert_equal(mine, variant(FILE, "H1_64"), inner) == 11
