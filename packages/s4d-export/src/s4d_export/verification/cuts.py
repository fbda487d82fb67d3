"""Where a frame cuts a list of instances, and how near each row came to the cut.

Three lists are cut by rank: the new instances that join the carried ones after the first
decoders, the instances that are carried on, and the detections. The last is cut by class score
and then ordered by class score times centerness, so a row that barely got in need not be last.
Two correct programs may decide differently where the deciding values are nearer than rounding.
The reference tells here what it decided by; ``comparison`` tells with it a tie from an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s4d_core import FrameOutput, Sparse4DConfig
from s4d_core.decode import decode_ranked

from .matching import Rows, match_rows

__all__ = ["detection_ties", "frame_cuts", "joined_ties", "sure_labels"]

Table = Mapping[str, NDArray[Any]]
PREFIX = "cut."  # of the entries beside the graph's outputs


def frame_cuts(out: FrameOutput, config: Sparse4DConfig) -> dict[str, NDArray[Any]]:
    """What the three cuts of a frame were decided by, batch 1.

    Returns:
        ``cut.listed`` (K,) class scores of the detections, in their order, and ``cut.label_lead``
        by how much each beat the instance's second best class; ``cut.boxes`` (R, 10),
        ``cut.scores``, ``cut.labels``, ``cut.track_ids``, ``cut.values`` (R,): all that could
        have been a detection, listed or not, and its class score; ``cut.joined`` ids of the
        instances that joined the carried ones and ``cut.joined_lead`` by how much their class
        score beat the best that did not (empty where nothing was cut).
    """
    cls, quality = out.cls[-1], out.quality[-1]
    assert cls is not None
    arguments = (cls, quality, out.box[-1], out.track_ids)
    everything = cls.shape[1] * (1 if config.decode_classes == "best" else cls.shape[2])
    every = decode_ranked(*arguments, config.replace(num_output=everything))
    ids, lead = _joined(out, config)
    listed = decode_ranked(*arguments, config)
    found = {
        "listed": listed.own_scores,
        "label_lead": _label_lead(cls, listed.track_ids, out.track_ids, config),
        "boxes": every.boxes,
        "scores": every.scores,
        "labels": every.labels,
        "track_ids": every.track_ids,
        "values": every.own_scores,
        "joined": ids,
        "joined_lead": lead,
    }
    return {PREFIX + name: value.squeeze(0).cpu().numpy() for name, value in found.items()}


def _joined(out: FrameOutput, config: Sparse4DConfig) -> tuple[Tensor, Tensor]:
    """Ids (1, J) and leads (1, J) of the new instances; J is 0 where all were kept."""
    index = out.trace.update_index
    first = out.cls[config.decoder.num_single_frame - 1]
    if index is None or first is None or not bool(out.trace.temporal_mask[0]):
        none = out.track_ids[:, :0]
        return none, none.float()
    value = first.amax(dim=-1).sigmoid()
    rest = value.scatter(1, index, -1.0).amax(dim=1, keepdim=True)
    return out.track_ids[:, config.num_temporal :], value.gather(1, index) - rest


def _label_lead(cls: Tensor, listed: Tensor, ids: Tensor, config: Sparse4DConfig) -> Tensor:
    """(1, K) distance to the second class; infinite where every class is listed or ids tell
    nothing."""
    unique = config.num_temporal and bool((ids >= 0).all())
    if config.decode_classes != "best" or cls.shape[2] < 2 or not unique:
        return torch.full_like(listed, torch.inf, dtype=cls.dtype)
    best = cls.sigmoid().topk(2, dim=-1).values
    row = (listed[:, :, None] == ids[:, None, :]).to(torch.uint8).argmax(dim=-1)
    return (best[..., 0] - best[..., 1]).gather(1, row)


def joined_ties(reference: Table, margin: float) -> set[int]:
    """Ids of instances that joined the carried ones by no more than `margin`."""
    if PREFIX + "joined" not in reference:
        return set()
    near = reference[PREFIX + "joined"][reference[PREFIX + "joined_lead"] <= margin]
    return {int(number) for number in near if number >= 0}


def detection_ties(
    reference: Table,
    candidate: Rows,
    left_a: NDArray[Any],
    left_b: NDArray[Any],
    radius: float,
    margin: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which detections without counterpart the cut explains; None if the reference cannot tell.

    A detection of the reference is explained if its class score beats the best unlisted one by no
    more than `margin`. One of the candidate is explained if the reference has the same instance
    (within `radius`), did not list it, and it missed by no more than `margin`.

    Args:
        candidate: its detections; left_a, left_b: numbers of the rows without counterpart.
    """
    if PREFIX + "listed" not in reference:
        return None
    listed, values = reference[PREFIX + "listed"], reference[PREFIX + "values"]
    unlisted = np.argsort(-values, kind="stable")[len(listed) :]
    best = float(values[unlisted].max(initial=-np.inf))
    near = unlisted[values[unlisted] >= float(listed.min()) - margin]
    place, score, label, ids = (
        reference[PREFIX + name][near] for name in ("boxes", "scores", "labels", "track_ids")
    )
    rows = Rows(place.astype(float), score.astype(float), label.astype(int), ids.astype(int))
    left = Rows(*(getattr(candidate, name)[left_b] for name in vars(candidate)))
    explained = np.zeros(len(left_b), bool)
    explained[match_rows(rows, left, radius).second] = True
    return listed[left_a] - best <= margin, explained


def sure_labels(reference: Table, rows: NDArray[Any], margin: float) -> NDArray[np.bool_]:
    """Of which detections the reference's class beat the second by more than `margin`."""
    if PREFIX + "label_lead" not in reference:
        return np.ones(len(rows), bool)
    sure: NDArray[np.bool_] = reference[PREFIX + "label_lead"][rows] > margin
    return sure
