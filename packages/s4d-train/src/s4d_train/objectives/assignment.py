"""Hungarian assignment of predictions to ground truth for all decoders and samples of a step.

The costs are computed on the device in one go and come to the host in one copy; the assignments run
in host threads (scipy releases the GIL) and go back in one copy. This is the only place of a
training step where the host waits for the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import TARGET_COLUMNS
from .ground_truth import GroundTruth, to_device

FORBIDDEN = 1e8
"""Cost in place of a NaN or infinite one: such a pair is taken when nothing else is left."""
UNMATCHED = -1


@dataclass(frozen=True)
class CostWeights:
    """Weights of the assignment cost; `columns` has one entry per target column.

    `continuity` is taken off the cost of a carried instance and the object that it was matched to
    in the frame before, see `continuity`; 0 is the published rule.
    """

    classification: float = 2.0
    box: float = 0.25
    continuity: float = 0.0
    columns: tuple[float, ...] = (2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0)
    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12


def target_weights(
    target: Tensor, label: Tensor, class_weights: dict[int, tuple[float, ...]]
) -> Tensor:
    """Weight (..., 10) of each target column: 1, or 0 where the target is NaN.

    A class in `class_weights` has its own vector, which replaces the 0/1 of missing values.
    """
    weight = (~target.isnan()).to(target.dtype)
    for index, vector in class_weights.items():
        own = torch.tensor(vector, dtype=target.dtype).to(target.device, non_blocking=True)
        weight = torch.where((label == index)[..., None], own, weight)
    return weight


def class_cost(logits: Tensor, label: Tensor, weights: CostWeights) -> Tensor:
    """Focal cost (D, B, A, G) of logits (D, B, A, C) for labels (B, G); padding is class 0."""
    p = logits.sigmoid()
    negative = -(1 - p + weights.eps).log() * (1 - weights.alpha) * p.pow(weights.gamma)
    positive = -(p + weights.eps).log() * weights.alpha * (1 - p).pow(weights.gamma)
    cost = (positive - negative) * weights.classification
    index = label.clamp(min=0)[None, :, None, :].expand(*cost.shape[:3], -1)
    return cost.gather(-1, index)


def box_cost(box: Tensor, target: Tensor, column_weight: Tensor, weights: CostWeights) -> Tensor:
    """Weighted L1 cost (..., A, G) of boxes (..., A, >=10) for targets and weights (..., G, 10).

    Columns of weight 0 are left out, and so is a missing (NaN) value of a target.
    """
    total = torch.zeros((), dtype=box.dtype, device=box.device)
    target = target.nan_to_num(nan=0.0)
    for column, weight in enumerate(weights.columns):
        if weight == 0.0:
            continue
        difference = (box[..., :, None, column] - target[..., None, :, column]).abs()
        total = total + difference * (column_weight[..., None, :, column] * weight)
    return total * weights.box


def solve(cost: np.ndarray) -> np.ndarray:
    """Row of each column in the cheapest assignment of costs (A, G); -1 where none is left."""
    matched = np.full(cost.shape[1], UNMATCHED, dtype=np.int64)
    if cost.size:
        if not np.isfinite(cost).all():
            cost = np.where(np.isfinite(cost), cost, FORBIDDEN)
        rows, columns = linear_sum_assignment(cost)
        matched[columns] = rows
    return matched


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(16, os.cpu_count() or 1)), "s4d-assign")


def solve_all(costs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`solve` for every matrix, in threads."""
    if len(costs) < 2:
        return [solve(cost) for cost in costs]
    return list(_threads().map(solve, costs))


def assign(
    logits: Tensor,
    box: Tensor,
    truth: GroundTruth,
    weights: CostWeights,
    class_weights: dict[int, tuple[float, ...]],
    together: Tensor | None = None,
    first_temporal: int = 0,
) -> Tensor:
    """Prediction index (D, B, G) of every object; -1 for padding and for objects left over.

    Args:
        logits: (D, B, A, C) class logits of D decoders.
        box: (D, B, A, 11) predicted box states.
        truth: ground truth on the same device.
        weights, class_weights: of the cost.
        together: (B, T, G) bool of `continuity.same_object` for the first T instances, or None.
        first_temporal: the decoder from which on the first T instances are the carried ones.
    """
    decoders, batch = logits.shape[:2]
    size = truth.label.shape[1]
    matched = np.full((decoders, batch, size), UNMATCHED, dtype=np.int64)
    if truth.total == 0:
        return torch.from_numpy(matched).to(logits.device)
    with torch.no_grad():
        column_weight = target_weights(truth.target, truth.label, class_weights)
        cost = class_cost(logits, truth.label, weights)
        cost = cost + box_cost(box[..., :TARGET_COLUMNS], truth.target, column_weight, weights)
        if together is not None:
            cost[first_temporal:, :, : together.shape[1]] -= weights.continuity * together
        # (G, A): the solver walks along rows, one per object.
        host = to_host(cost.transpose(-1, -2).contiguous()).numpy()
    places = [(d, b) for d in range(decoders) for b in range(batch) if truth.count[b]]
    found = solve_all([host[d, b, : truth.count[b]].T for d, b in places])
    for (d, b), rows in zip(places, found, strict=True):
        matched[d, b, : truth.count[b]] = rows
    return to_device(torch.from_numpy(matched), logits.device)


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` on the host; waits for exactly this copy."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.Event(device=tensor.device)
    done.record()
    done.synchronize()
    return host
