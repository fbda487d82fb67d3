"""Four frames of the reduced v2 model against the published code, in float64."""

from __future__ import annotations

from golden_family import assert_equal, family_model, roll_out, variant

FILE, NAME = "golden_v2_small.npz", "sparse4dv2_r50_256x704"


def test_v2_equals_the_reference(any_op: None) -> None:
    model = family_model(NAME).eval()
    mine, theirs = roll_out(model, FILE, "v2small", 4), variant(FILE, "v2_64")
    compared = assert_equal(mine, theirs, lambda kind: kind.startswith(("op", "neck", "backbone")))
    assert compared == 73
