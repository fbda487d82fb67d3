"""Model output to boxes (REFERENCE B5.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .box import decode_boxes
from .config import Sparse4DConfig

__all__ = [
    "Detections",
    "Ranked",
    "Ranking",
    "decode",
    "decode_ranked",
    "decode_tensors",
    "rank",
    "select",
]


@dataclass(frozen=True)
class Detections:
    """Boxes of one sample, by falling score.

    Attributes:
        boxes: (K, 10) `x y z w l h yaw vx vy vz`, LiDAR frame, metres, radians, metres per second.
        scores: (K,) class score times centerness.
        labels: (K,) int64 index into the class names.
        track_ids: (K,) int64, -1 for none.
        class_scores: (K,) class scores alone, for tracking's choice of boxes. With
            `score_order="reference"` they are sorted on their own and do not belong to the
            boxes row by row: the reference keeps the first n boxes, n being the number of class
            scores over its threshold. With "aligned" they do belong.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    track_ids: Tensor
    class_scores: Tensor


class Ranking(NamedTuple):
    """The best `num_output` instances, by falling score; all (B, K). `rows` says which."""

    scores: Tensor
    labels: Tensor
    rows: Tensor
    class_scores: Tensor


class _Output(Protocol):
    @property
    def cls(self) -> list[Tensor | None]: ...
    @property
    def box(self) -> list[Tensor]: ...
    @property
    def quality(self) -> list[Tensor | None]: ...
    @property
    def track_ids(self) -> Tensor: ...


def rank(cls: Tensor, quality: Tensor | None, config: Sparse4DConfig) -> Ranking:
    """Choose `num_output` instances by class score, then order them by score x centerness.

    With `decode_classes="all"`, pairs of instance and class are chosen, as in v1 and v2.

    Args:
        cls: (B, A, classes) logits.
        quality: (B, A, 2) logits, centerness first; None: class scores are the scores.
    """
    count, classes = config.num_output, cls.shape[-1]
    if config.decode_classes == "best":
        best, label = cls.sigmoid().max(dim=-1)
        class_scores, rows = best.topk(count, dim=1)
        labels = label.gather(1, rows)
    else:
        class_scores, pair = cls.sigmoid().flatten(1).topk(count, dim=1)
        rows = torch.div(pair, classes, rounding_mode="floor")
        labels = pair - rows * classes
    if quality is None:
        return Ranking(class_scores, labels, rows, class_scores)
    fused = class_scores * quality[..., 0].gather(1, rows).sigmoid()
    scores, order = fused.topk(count, dim=1)
    if config.score_order == "aligned":
        class_scores = class_scores.gather(1, order)
    return Ranking(scores, labels.gather(1, order), rows.gather(1, order), class_scores)


class Ranked(NamedTuple):
    """Detections of every sample before any threshold, by falling score; K = `num_output`.

    Attributes:
        boxes, scores, labels, track_ids: (B, K, 10), (B, K), (B, K) int64, (B, K) int64.
        class_scores: (B, K), in the order that `config.score_order` says.
        own_scores: (B, K), each box's own class score.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    track_ids: Tensor
    class_scores: Tensor
    own_scores: Tensor


def decode_ranked(
    cls: Tensor, quality: Tensor | None, box: Tensor, track_ids: Tensor, config: Sparse4DConfig
) -> Ranked:
    """What `decode` chooses from, on the device of its inputs; arguments as `decode_tensors`."""
    ranking = rank(cls, quality, config)
    rows = ranking.rows.unsqueeze(-1).expand(-1, -1, box.shape[-1])
    return Ranked(
        decode_boxes(box.gather(1, rows)),
        ranking.scores,
        ranking.labels,
        track_ids.gather(1, ranking.rows),
        ranking.class_scores,
        cls.sigmoid().flatten(1).gather(1, ranking.rows * cls.shape[-1] + ranking.labels),
    )


def decode_tensors(
    cls: Tensor, quality: Tensor | None, box: Tensor, track_ids: Tensor, config: Sparse4DConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batched decoding with a fixed number of boxes: what an exported graph ends with.

    Args:
        cls, quality, box: (B, A, classes), (B, A, 2) or None, (B, A, 11) of the last decoder.
        track_ids: (B, A).

    Returns:
        boxes (B, K, 10), scores (B, K), labels (B, K) int64, track ids (B, K) int64, by falling
        score; K = `config.num_output`. No threshold is applied.
    """
    found = decode_ranked(cls, quality, box, track_ids, config)
    return found.boxes, found.scores, found.labels, found.track_ids


def decode(output: _Output, config: Sparse4DConfig) -> list[Detections]:
    """Detections of every sample.

    Args:
        output: of `Sparse4D.forward` or `Sparse4D.frame`.
        config: the model's. `score_threshold` drops detections with a lower class score; the
            class score is taken before it is multiplied by centerness, as in the reference.
    """
    cls, quality = output.cls[-1], output.quality[-1]
    assert cls is not None
    return select(decode_ranked(cls, quality, output.box[-1], output.track_ids, config), config)


def select(ranked: Ranked, config: Sparse4DConfig) -> list[Detections]:
    """Apply `config.score_threshold`, sample by sample."""
    result = []
    for boxes, scores, labels, ids, class_scores, own in zip(*ranked, strict=True):
        keep = torch.ones_like(own, dtype=torch.bool)
        if config.score_threshold is not None:
            keep = own >= config.score_threshold
        # Under "reference" the list of class scores is shortened to its best n, n boxes kept.
        aligned = config.score_order == "aligned"
        kept_scores = class_scores[keep] if aligned else class_scores[: int(keep.sum())]
        result.append(Detections(boxes[keep], scores[keep], labels[keep], ids[keep], kept_scores))
    return result
