"""Four frames of the reduced model against both published code bases.

float64: every number to 1e-8, every discrete choice equal. float32: within the differences that
the reference shows against itself. Sample 1 passes a time gap, sample 0 a zero interval.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import golden_arrays, golden_module
from golden_model import golden_model, variant_arrays

import s4d_core
from s4d_core.decode import rank

FILE = "golden_small.npz"
FRAMES = 4
DISCRETE = (
    "update_index",
    "cached_index",
    "bank_track_id",
    "prev_id",
    "temp_mask",
    "decoded/labels_3d",
    "decoded/track_ids",
    "decoded/index",
)


def roll_out(variant: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """All frames through `Sparse4D.forward`, named as the golden arrays are."""
    rules, arrays = golden_module("v3", "rules"), golden_arrays("v3", FILE)
    model = golden_model(FILE, variant, dtype).eval()
    batch, (height, width) = rules.SMALL["bs"], model.config.image.size
    lidar2img = torch.from_numpy(arrays["in/lidar2img"]).to(dtype)
    image_wh = torch.tensor([width, height], dtype=dtype).expand(batch, 6, 2)
    state, result = None, {}
    for t in range(FRAMES):
        images = torch.from_numpy(rules.image("small", t, batch, height, width)).to(dtype)
        with torch.no_grad():
            output = model(
                images,
                lidar2img,
                image_wh,
                torch.from_numpy(arrays["in/timestamp"][t]),
                torch.from_numpy(arrays["in/lidar2global"][t]),
                state,
                every_layer=True,
            )
        first, state = state is None, output.state
        result.update({f"f{t}/{k}": v for k, v in frame_arrays(output, model, first).items()})
    return result


def frame_arrays(
    output: s4d_core.Sparse4DOutput, model: s4d_core.Sparse4D, first: bool
) -> dict[str, np.ndarray]:
    trace, bank = output.trace, output.state.bank
    found = {
        "time_interval": trace.time_interval,
        "temp_mask": trace.temporal_mask,
        "update_index": trace.update_index,
        "temp_confidence": trace.confidence,
        "cached_index": trace.cached_index,
        "cached_confidence": bank.confidence,
        "cached_anchor": bank.anchor,
        "cached_feature": bank.feature,
        "bank_track_id": torch.nn.functional.pad(
            bank.track_id, (0, model.config.num_anchors - model.config.num_temporal), value=-1
        ),
        "prev_id": bank.id_counter[0],
    }
    if not first:
        found["temp_anchor_projected"] = trace.projected_anchor
    for i in range(len(output.box)):
        found[f"layer{i}/box"] = output.box[i]
        found[f"layer{i}/cls"] = output.cls[i]
        found[f"layer{i}/quality"] = output.quality[i]
    detections = s4d_core.decode(output, model.config)
    for name, key in (
        ("boxes", "boxes_3d"),
        ("scores", "scores_3d"),
        ("labels", "labels_3d"),
        ("track_ids", "track_ids"),
        ("class_scores", "cls_scores"),
    ):
        found[f"decoded/{key}"] = torch.stack([getattr(d, name) for d in detections])
    found["decoded/index"] = rank(output.cls[-1], output.quality[-1], model.config).rows
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("variant", ["hz64", "se2e64"])
def test_float64_equals_the_reference(variant: str, both_ops: str) -> None:
    mine, theirs = roll_out(variant, torch.float64), variant_arrays(FILE, variant)
    compared = 0
    for name, value in theirs.items():
        kind = name.split("/", 1)[1]
        if kind.startswith(("op", "neck", "backbone")):
            continue  # inside the network: covered by the layers' outputs
        if name not in mine:
            assert name.startswith("f0/temp_anchor_projected"), name
            continue
        compared += 1
        if kind in DISCRETE:
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
        else:
            # Arrays that the files hold in float32 are compared at its resolution.
            tolerance = 1e-8 if value.dtype == np.float64 else 1e-8 + 6e-8 * np.abs(value)
            difference = np.abs(mine[name] - value.astype(np.float64))
            assert (difference <= tolerance).all(), (name, difference.max())
    assert compared >= FRAMES * 22


@pytest.mark.parametrize("variant", ["hz32", "se2e32"])
def test_float32_is_as_close_as_the_reference_is_to_itself(variant: str, any_op: None) -> None:
    check = golden_module("v3", "check")
    mine, theirs = roll_out(variant, torch.float32), variant_arrays(FILE, variant[:-2] + "64")
    for name, row in check.matched(theirs, mine).items():
        layer0 = "layer0/" in name
        assert row["median"] < 1e-4, (name, row)
        assert row["p999"] < (2e-5 if layer0 else 3e-3), (name, row)
        assert row["max"] < (2e-5 if layer0 else 1e-1), (name, row)
        assert row["unmatched"] == 0, (name, row)
    assert check.discrete(theirs, mine) == []
