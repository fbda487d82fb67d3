"""Matching that keeps carried instances with their objects."""

from __future__ import annotations

import torch

from s4d_train.objectives.assignment import CostWeights, assign
from s4d_train.objectives.continuity import carried_owner, same_object
from s4d_train.objectives.ground_truth import pack_ground_truth


def scene() -> tuple[torch.Tensor, torch.Tensor, object]:
    """Two objects; instances 0 and 1 are carried, 2 and 3 new and nearer to the objects."""
    boxes = torch.zeros(2, 9)
    boxes[:, 0] = torch.tensor([0.0, 20.0])
    boxes[:, 3:6] = 1.0
    truth = pack_ground_truth([boxes], [torch.tensor([0, 0])], [torch.tensor([7, 8])])
    predicted = torch.zeros(2, 1, 4, 11)
    predicted[..., 7] = 1.0
    predicted[..., 0] = torch.tensor([1.0, 21.0, 0.1, 20.1])
    return torch.zeros(2, 1, 4, 3), predicted, truth


def test_carried_instances_keep_their_objects_from_the_temporal_decoders_on() -> None:
    logits, box, truth = scene()
    owner = torch.tensor([[8, 7]])
    together = same_object(owner, torch.tensor([True]), truth.track_id)
    assert together.tolist() == [[[False, True], [True, False]]]
    owner = torch.tensor([[7, 8]])
    together = same_object(owner, torch.tensor([True]), truth.track_id)
    weights = CostWeights(continuity=2.0)
    matched = assign(logits, box, truth, weights, {}, together, first_temporal=1)
    assert matched[0, 0].tolist() == [2, 3]
    assert matched[1, 0].tolist() == [0, 1]


def test_an_instance_that_is_too_far_loses_its_object() -> None:
    logits, box, truth = scene()
    box[:, :, 0, 0] = 6.0
    together = same_object(torch.tensor([[7, 8]]), torch.tensor([True]), truth.track_id)
    matched = assign(logits, box, truth, CostWeights(continuity=2.0), {}, together)
    assert matched[1, 0].tolist() == [2, 1]


def test_no_past_and_no_owner_mean_no_preference() -> None:
    track = torch.tensor([[7, -1]])
    assert not same_object(torch.tensor([[7, -1]]), torch.tensor([False]), track).any()
    assert same_object(torch.tensor([[-1, 7]]), torch.tensor([True]), track).sum() == 1


def test_owners_follow_the_instances_that_are_carried_on() -> None:
    matched = torch.tensor([[3, -1, 0]])
    owner = carried_owner(matched, torch.tensor([[5, 6, 9]]), 4, torch.tensor([[3, 1, 0]]))
    assert owner.tolist() == [[5, -1, 9]]
    matched = torch.tensor([[3, 0, -1]])  # the object without an instance comes last
    owner = carried_owner(matched, torch.tensor([[5, 6, 9]]), 4, torch.tensor([[3, 1, 0]]))
    assert owner.tolist() == [[5, -1, 6]]
