"""Model output to boxes (REFERENCE B5.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .box import decode_boxes
from .config import Sparse4DConfig

__all__ = ["Detections", "Ranking", "decode", "decode_tensors", "rank"]


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


def rank(cls: Tensor, quality: Tensor, config: Sparse4DConfig) -> Ranking:
    """Choose `num_output` instances by class score, then order them by score x centerness.

    Args:
        cls: (B, A, classes) logits.
        quality: (B, A, 2) logits, centerness first.
    """
    best, label = cls.sigmoid().max(dim=-1)
    class_scores, index = best.topk(config.num_output, dim=1)
    fused = class_scores * quality[..., 0].gather(1, index).sigmoid()
    scores, order = fused.topk(config.num_output, dim=1)
    index = index.gather(1, order)
    if config.score_order == "aligned":
        class_scores = class_scores.gather(1, order)
    return Ranking(scores, label.gather(1, index), index, class_scores)


def decode_tensors(
    cls: Tensor, quality: Tensor, box: Tensor, track_ids: Tensor, config: Sparse4DConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batched decoding with a fixed number of boxes: what an exported graph ends with.

    Args:
        cls, quality, box: (B, A, classes), (B, A, 2), (B, A, 11) of the last decoder.
        track_ids: (B, A).

    Returns:
        boxes (B, K, 10), scores (B, K), labels (B, K) int64, track ids (B, K) int64, by falling
        score; K = `config.num_output`. No threshold is applied.
    """
    ranking = rank(cls, quality, config)
    rows = ranking.rows.unsqueeze(-1).expand(-1, -1, box.shape[-1])
    boxes = decode_boxes(box.gather(1, rows))
    return boxes, ranking.scores, ranking.labels, track_ids.gather(1, ranking.rows)


def decode(output: _Output, config: Sparse4DConfig) -> list[Detections]:
    """Detections of every sample.

    Args:
        output: of `Sparse4D.forward` or `Sparse4D.frame`.
        config: the model's. `score_threshold` drops detections with a lower class score; the
            class score is taken before it is multiplied by centerness, as in the reference.
    """
    cls, quality = output.cls[-1], output.quality[-1]
    assert cls is not None and quality is not None
    boxes, scores, labels, ids = decode_tensors(
        cls, quality, output.box[-1], output.track_ids, config
    )
    ranking = rank(cls, quality, config)
    own = cls.sigmoid().amax(dim=-1).gather(1, ranking.rows)
    result = []
    for b in range(boxes.shape[0]):
        keep = torch.ones_like(own[b], dtype=torch.bool)
        if config.score_threshold is not None:
            keep = own[b] >= config.score_threshold
        # Under "reference" the list of class scores is shortened to its best n, n boxes kept.
        kept_scores = ranking.class_scores[b]
        aligned = config.score_order == "aligned"
        kept_scores = kept_scores[keep] if aligned else kept_scores[: int(keep.sum())]
        result.append(
            Detections(boxes[b][keep], scores[b][keep], labels[b][keep], ids[b][keep], kept_scores)
        )
    return result
