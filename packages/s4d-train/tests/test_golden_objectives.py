"""Objectives against the golden arrays, from the golden predictions: no model involved.

The archive keeps predictions in float32, so losses agree to float32 rounding here; the test with
the model compares them in full precision.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FedDraws, arrays, ground_truth_lists, needs_golden

from s4d_train.objectives.assignment import assign
from s4d_train.objectives.denoising import make_denoising
from s4d_train.objectives.detection import (
    LossConfig,
    Predictions,
    average_factors,
    denoising_losses,
    detection_losses,
)
from s4d_train.objectives.ground_truth import pack_ground_truth
from s4d_train.objectives.temporal_denoising import DenoisingState, carry, keep

pytestmark = needs_golden
LAYERS = 3
CONFIG = LossConfig()


@pytest.fixture(scope="module")
def z() -> dict[str, np.ndarray]:
    return arrays()


def truth_of(z, frame):
    return pack_ground_truth(*ground_truth_lists(z, frame), dtype=torch.float64)


def layers(z, prefix, what):
    return [torch.from_numpy(z[f"{prefix}/{what}/layer{i}"]).double() for i in range(LAYERS)]


def predictions(z, prefix):
    names = ("classification", "prediction", "quality")
    return Predictions.stack(*(layers(z, prefix, name) for name in names))


def noisy(z, frame):
    return make_denoising(truth_of(z, frame), CONFIG.denoising, CONFIG.cost, FedDraws(z, frame))


@pytest.mark.parametrize("variant", ["hz64", "se2e64"])
@pytest.mark.parametrize("frame", [0, 1])
def test_assignment_and_free_losses(z, variant, frame):
    prefix = f"{variant}/f{frame}"
    found, truth = predictions(z, prefix), truth_of(z, frame)
    matched = assign(found.cls, found.box, truth, CONFIG.cost, CONFIG.class_columns)
    for layer in range(LAYERS):
        for b in range(2):
            rows, objects = z[f"{prefix}/assign/layer{layer}_b{b}"]
            want = np.empty(len(objects), np.int64)
            want[objects] = rows
            assert np.array_equal(matched[layer, b, : truth.count[b]].numpy(), want)
    (factor,) = average_factors(truth, [], found.cls)
    for key, value in detection_losses(found, truth, factor, CONFIG).items():
        np.testing.assert_allclose(value.item(), z[f"{prefix}/loss/{key}"], rtol=2e-6, err_msg=key)


@pytest.mark.parametrize("frame", [0, 1])
def test_denoising_targets_are_equal(z, frame):
    prefix = f"hz64/f{frame}"
    made = noisy(z, frame)
    assert made is not None
    assert np.array_equal(made.label.numpy(), z[f"{prefix}/dn_cls_target"])
    assert np.array_equal(made.valid.numpy(), z[f"{prefix}/dn_valid_mask"])
    np.testing.assert_allclose(
        made.target.numpy(), z[f"{prefix}/dn_reg_target"], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("variant", ["hz64", "se2e64"])
def test_temporal_denoising(z, variant):
    """Frame 0 is kept with its fed permutation and carried into frame 1."""
    first, second = noisy(z, 0), noisy(z, 1)
    assert first is not None and second is not None
    groups, kept = CONFIG.denoising.groups, CONFIG.denoising.temporal_groups
    anchor = torch.from_numpy(z[f"{variant}/f0/dn_prediction/layer2"]).double()
    feature = torch.zeros(2, first.size, 4, dtype=torch.float64)
    state = keep(feature, anchor, first, groups, kept, FedDraws(z, 0))
    check_state(z, f"{variant}/f0", state)
    now = carry(state, torch.ones(2, dtype=torch.bool), second, groups)
    prefix = f"{variant}/f1"
    assert np.array_equal(now.label.numpy(), z[f"{prefix}/temp_dn_cls_target"])
    assert np.array_equal(now.valid.numpy(), z[f"{prefix}/temp_dn_valid_mask"])
    assert np.array_equal(now.track_id.numpy(), z[f"{prefix}/dn_id_target"])
    np.testing.assert_allclose(
        now.target.numpy(), z[f"{prefix}/temp_dn_reg_target"], rtol=0, atol=1e-13
    )
    last = torch.from_numpy(z[f"{prefix}/dn_prediction/layer2"]).double()
    check_state(z, prefix, keep(feature[:, : now.size], last, now, groups, kept, FedDraws(z, 1)))


def check_state(z, prefix: str, state: DenoisingState) -> None:
    assert np.array_equal(state.label.numpy(), z[f"{prefix}/cached_dn/dn_cls_target"])
    assert np.array_equal(state.valid.numpy(), z[f"{prefix}/cached_dn/valid_mask"])
    assert np.array_equal(state.track_id.numpy(), z[f"{prefix}/cached_dn/dn_id_target"])
    np.testing.assert_allclose(
        state.anchor.numpy(), z[f"{prefix}/cached_dn/dn_anchor"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("variant", ["hz64", "se2e64"])
def test_denoising_losses(z, variant):
    first, second = noisy(z, 0), noisy(z, 1)
    assert first is not None and second is not None
    groups = CONFIG.denoising.groups
    zeros = torch.zeros(2, first.size, 4, dtype=torch.float64)
    anchor = torch.from_numpy(z[f"{variant}/f0/dn_prediction/layer2"]).double()
    state = keep(zeros, anchor, first, groups, 3, FedDraws(z, 0))
    carried = carry(state, torch.ones(2, dtype=torch.bool), second, groups)
    for frame, targets in ((0, [first] * 3), (1, [second, carried, carried])):
        prefix = f"{variant}/f{frame}"
        found = Predictions.stack(
            layers(z, prefix, "dn_classification"), layers(z, prefix, "dn_prediction")
        )
        _, *factors = average_factors(truth_of(z, frame), targets, found.cls)
        losses = denoising_losses(found, targets, factors, CONFIG)
        for key, value in losses.items():
            np.testing.assert_allclose(
                value.item(), z[f"{prefix}/loss/{key}"], rtol=2e-6, err_msg=key
            )
