"""Each loss against its formula, written out with numpy or plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from s4d_train.errors import BatchError
from s4d_train.objectives.assignment import (
    UNMATCHED,
    CostWeights,
    assign,
    box_cost,
    solve,
    target_weights,
)
from s4d_train.objectives.boxes import encode_boxes
from s4d_train.objectives.denoising import DenoisingConfig, make_denoising
from s4d_train.objectives.detection import (
    LossConfig,
    Predictions,
    average_factors,
    denoising_losses,
    detection_losses,
    no_denoising_losses,
)
from s4d_train.objectives.draws import GeneratorDraws
from s4d_train.objectives.ground_truth import pack_ground_truth
from s4d_train.objectives.losses import (
    average,
    centerness_loss,
    depth_loss,
    flip_reversible,
    focal_loss,
    yawness_loss,
)

CLASSES = 10


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_truth(counts=(3, 1), seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    boxes, labels, ids = [], [], []
    for n in counts:
        box = torch.rand(n, 9, generator=generator, dtype=dtype) * 4 + 0.5
        boxes.append(box)
        labels.append(torch.randint(0, CLASSES, (n,), generator=generator))
        ids.append(torch.arange(n) + 10)
    return pack_ground_truth(boxes, labels, ids)


def some_predictions(batch: int = 2, seed: int = 1, decoders: int = 2, rows: int = 6):
    return Predictions(
        cls=random(decoders, batch, rows, CLASSES, seed=seed).requires_grad_(),
        box=random(decoders, batch, rows, 11, seed=seed + 1).requires_grad_(),
        quality=random(decoders, batch, rows, 2, seed=seed + 2).requires_grad_(),
    )


def test_encoding() -> None:
    box = torch.tensor([[1.0, 2, 3, 4, 5, 6, 0.5, 7, 8]])
    want = [1, 2, 3, math.log(4), math.log(5), math.log(6), math.sin(0.5), math.cos(0.5), 7, 8]
    torch.testing.assert_close(encode_boxes(box), torch.tensor([want]))


def test_focal_loss_formula() -> None:
    logits, labels = random(7, CLASSES), torch.tensor([0, 9, 10, -1, -3, 4, 4])
    p = 1 / (1 + np.exp(-logits.numpy()))
    want = np.zeros_like(p)
    for row, label in enumerate(labels.tolist()):
        for c in range(CLASSES):
            q = p[row, c]
            positive = -0.25 * (1 - q) ** 2 * np.log(q)
            negative = -0.75 * q**2 * np.log(1 - q)
            want[row, c] = positive if c == label else negative
    np.testing.assert_allclose(focal_loss(logits, labels).numpy(), want, rtol=1e-12)


def test_focal_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1])).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_quality_losses_formula() -> None:
    logit, box, target = random(40), random(40, 10, seed=1), random(40, 10, seed=2)
    distance = np.linalg.norm((box - target)[:, :3].numpy(), axis=1)
    t, p = np.exp(-distance), 1 / (1 + np.exp(-logit.numpy()))
    want = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    np.testing.assert_allclose(centerness_loss(logit, box, target).numpy(), want, rtol=1e-10)

    right = (box[:, 6:8] * target[:, 6:8]).sum(1).numpy() > 0
    assert 10 < right.sum() < 30
    want = np.where(right, -np.log(p) * (1 - p) ** 2, -np.log(1 - p) * p**2)
    np.testing.assert_allclose(yawness_loss(logit, box, target).numpy(), want, rtol=1e-8)


def test_only_reversible_classes_flip() -> None:
    target = torch.zeros(3, 10)
    target[:, 7] = 1.0
    box = target.clone()
    box[:, 7] = torch.tensor([-1.0, -1.0, 1.0])
    flipped = flip_reversible(target, box, torch.tensor([5, 0, 5]), (5,))
    assert flipped[:, 7].tolist() == [-1.0, 1.0, 1.0]
    assert target[:, 7].tolist() == [1.0, 1.0, 1.0]


def test_depth_loss_formula() -> None:
    predictions = [random(2, 1, 3, 4).abs() * 40, random(2, 1, 2, 2, seed=3).abs() * 40]
    targets = [random(1, 2, 3, 4, seed=5) * 20, random(1, 2, 2, 2, seed=6) * 20]
    want = 0.0
    for p, t in zip(predictions, targets, strict=True):
        p, t = p.numpy().ravel(), t.numpy().ravel()
        errors = [abs(min(max(a, 0), 60) - b) for a, b in zip(p, t, strict=True) if b > 0]
        want += sum(errors) / max(1, 2 * len(errors)) * 0.2
    assert depth_loss(predictions, targets, 0.2, 60.0).item() == pytest.approx(want, rel=1e-12)
    for no_return in (-1.0, 0.0):
        nothing = [torch.full_like(t, no_return) for t in targets]
        assert depth_loss(predictions, nothing, 0.2, 60.0).item() == 0.0


def test_masked_values_do_not_reach_an_average() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf")], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    result = average(values, mask, torch.tensor(2.0), (0,))
    result.backward()
    assert result.item() == pytest.approx(2.0)
    assert values.grad is not None and values.grad.tolist() == pytest.approx([0.5, 0, 0.5, 0])


def test_a_class_with_weights_of_its_own_keeps_them_for_missing_values() -> None:
    target = torch.zeros(2, 10)
    target[:, 8:] = float("nan")
    weight = target_weights(target, torch.tensor([3, 9]), {9: tuple(range(10))})
    assert weight.tolist() == [[1] * 8 + [0, 0], list(range(10))]


def test_factors_are_at_least_one() -> None:
    factors = average_factors(some_truth((0, 0)), [None], random(1))
    assert [f.item() for f in factors] == [1, 1]
    assert average_factors(some_truth((3, 1)), [], random(1))[0].item() == 4


@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (3, 5)])
def test_assignment_is_the_cheapest(shape: tuple[int, int]) -> None:
    rows, columns = shape
    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=shape)
        found = solve(cost)
        total = sum(cost[r, c] for c, r in enumerate(found) if r != UNMATCHED)
        if rows >= columns:
            choices = (
                sum(cost[r, c] for c, r in enumerate(p))
                for p in itertools.permutations(range(rows), columns)
            )
        else:
            choices = (
                sum(cost[r, c] for r, c in enumerate(p))
                for p in itertools.permutations(range(columns), rows)
            )
        assert total == pytest.approx(min(choices))
        assert (found != UNMATCHED).sum() == min(shape)


def test_box_cost_leaves_missing_values_out() -> None:
    box, target = random(1, 1, 4, 10), random(1, 1, 2, 10, seed=1)
    target[..., 8:] = float("nan")
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    weight = target_weights(target, label, {})
    cost = box_cost(box, target, weight, CostWeights(columns=(1.0,) * 10, box=1.0))
    want = (box[..., :, None, :8] - target[..., None, :, :8]).abs().sum(-1)
    torch.testing.assert_close(cost, want)


def test_broken_predictions_do_not_stop_the_assignment() -> None:
    truth, found = some_truth(), some_predictions()
    box = found.box.detach().clone()
    box[:, :, 0] = float("nan")
    box[:, :, 1] = float("inf")
    matched = assign(found.cls.detach(), box, truth, CostWeights(), {})
    assert (matched[:, 0, :3] > 1).all()
    matched = assign(found.cls.detach() * float("nan"), box, truth, CostWeights(), {})
    assert (matched[:, 0, :3] >= 0).all()


def test_more_objects_than_predictions() -> None:
    truth, found = some_truth((9, 0)), some_predictions()
    (factor,) = average_factors(truth, [], found.cls)
    losses = detection_losses(found, truth, factor, LossConfig())
    assert all(value.isfinite() for value in losses.values())


def test_losses_of_a_matched_box_by_hand() -> None:
    """One sample, one object, one decoder: everything written out."""
    config = LossConfig(box_score_threshold=0.0)
    box = torch.tensor([[5.0, 4, 1, 2, 3, 1, 0.3, 1, -1]], dtype=torch.float64)
    truth = pack_ground_truth([box], [torch.tensor([9])], [torch.tensor([3])])
    found = some_predictions(batch=1, decoders=1, rows=1)
    (factor,) = average_factors(truth, [], found.cls)
    losses = detection_losses(found, truth, factor, config)
    weight = np.array([2, 2, 2, 1, 1, 1, 0, 0, 1, 1]) * np.array([2, 2, 2] + [1] * 7)
    error = np.abs(found.box[0, 0, 0, :10].detach().numpy() - encode_boxes(box)[0].numpy())
    assert losses["loss_box_0"].item() == pytest.approx((error * weight).sum() * 0.25, rel=1e-6)
    focal = focal_loss(found.cls[0, 0], torch.tensor([9])).sum().item() * 2
    assert losses["loss_cls_0"].item() == pytest.approx(focal, rel=1e-6)


def test_low_scores_get_no_box_loss() -> None:
    truth, found = some_truth(), some_predictions()
    low = Predictions(found.cls.detach() - 50, found.box, found.quality)
    (factor,) = average_factors(truth, [], low.cls)
    losses = detection_losses(low, truth, factor, LossConfig())
    assert losses["loss_box_0"].item() == 0.0 and losses["loss_cns_0"].item() == 0.0
    assert losses["loss_cls_0"].item() > 0.0


@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_batches_without_objects_have_the_same_keys(counts) -> None:
    full, empty = some_truth((3, 1)), some_truth(counts)
    keys = []
    for truth in (full, empty):
        found = some_predictions()
        noisy = make_denoising(truth, LossConfig().denoising, CostWeights(), GeneratorDraws(0))
        factor, *rest = average_factors(truth, [noisy], found.cls)
        losses = detection_losses(found, truth, factor, LossConfig())
        if noisy is None:
            losses |= no_denoising_losses(found)
        else:
            rows = Predictions(
                random(2, 2, noisy.size, CLASSES), random(2, 2, noisy.size, 11, seed=8)
            )
            losses |= denoising_losses(rows, [noisy] * 2, rest * 2, LossConfig())
        sum(losses.values()).backward()
        assert found.cls.grad is not None and found.cls.grad.isfinite().all()
        assert found.quality.grad is not None and found.box.grad is not None
        keys.append(list(losses))
    assert keys[0] == keys[1]


def test_denoising_groups_and_padding() -> None:
    truth = some_truth((3, 1))
    config = DenoisingConfig(groups=2, noise=(0.0,) * 10)
    made = make_denoising(truth, config, CostWeights(), GeneratorDraws(0))
    assert made is not None and made.anchor.shape == (2, 12, 11)
    # Without noise every small-noise anchor is its object, and so is every large-noise one; the
    # matching gives one of the two the object and makes the other a negative.
    assert (made.label[0] >= 0).sum() == 2 * 3 and (made.label[1] >= 0).sum() == 2 * 1
    assert made.valid[0].all() and made.valid[1].sum() >= 2
    torch.testing.assert_close(made.anchor[0, :3, :10], truth.target[0])
    wide = make_denoising(
        truth, DenoisingConfig(groups=2, fixed_size=True), CostWeights(), GeneratorDraws(0)
    )
    assert wide is not None and wide.anchor.shape == (2, 2 * 2 * 32, 11)


def test_denoising_takes_missing_velocities_as_zero() -> None:
    truth = some_truth((2, 2))
    truth.target[..., 8:] = float("nan")
    made = make_denoising(truth, DenoisingConfig(), CostWeights(), GeneratorDraws(0))
    assert made is not None and made.anchor.isfinite().all() and made.target.isfinite().all()


def test_draws_continue_where_they_were() -> None:
    draws = GeneratorDraws(3)
    draws.uniform((4,), torch.float32)
    state = draws.state_dict()
    want = draws.uniform((4,), torch.float32), draws.permutation(9)
    again = GeneratorDraws(0)
    again.load_state_dict(state)
    assert torch.equal(again.uniform((4,), torch.float32), want[0])
    assert torch.equal(again.permutation(9), want[1])


def test_ground_truth_that_does_not_fit_is_named() -> None:
    box, label, track = torch.zeros(2, 9), torch.zeros(2), torch.zeros(1)
    with pytest.raises(BatchError, match="2 boxes, 2 labels and 1 track"):
        pack_ground_truth([box], [label], [track])
    with pytest.raises(BatchError, match="sample 0 has"):
        pack_ground_truth([torch.zeros(2, 7)], [label], [label])
