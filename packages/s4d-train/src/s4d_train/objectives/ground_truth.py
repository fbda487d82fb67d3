"""The ground truth of a batch, padded to one size, on the host and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import BatchError
from .boxes import GT_COLUMNS, encode_boxes

NO_CLASS = -1
NO_TRACK = -1


@dataclass(frozen=True)
class GroundTruth:
    """Objects of B samples, padded to G = the largest count (at least 0).

    Attributes:
        target: (B, G, 10) regression targets of `encode_boxes`; padding is 0.
        label: (B, G) int64 class; padding is -1.
        track_id: (B, G) int64 instance id; padding is -1.
        count: objects per sample, plain integers: no device has to be asked for them.
    """

    target: Tensor
    label: Tensor
    track_id: Tensor
    count: tuple[int, ...]

    @property
    def total(self) -> int:
        """Objects in the whole batch."""
        return sum(self.count)

    def to(self, device: torch.device | str) -> GroundTruth:
        """The same ground truth on `device`; the copy does not block the host."""
        if self.target.device == torch.device(device):
            return self

        def move(tensor: Tensor) -> Tensor:
            return to_device(tensor, device)

        return replace(
            self,
            target=move(self.target),
            label=move(self.label),
            track_id=move(self.track_id),
        )


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`, through pinned memory where that lets the copy run beside the host."""
    device = torch.device(device)
    if tensor.device == device or device.type == "cpu":
        return tensor.to(device)
    if tensor.device.type == "cpu" and device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pack_ground_truth(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    track_ids: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> GroundTruth:
    """Packs one (n_i, 9) box, (n_i,) label and (n_i,) id tensor per sample, all on the host.

    `dtype` is the type of the targets; the boxes are cast before they are encoded.

    Raises:
        BatchError: the lists differ in length, or a sample's tensors differ in their object count.
    """
    if not len(boxes) == len(labels) == len(track_ids):
        raise BatchError(
            "boxes, labels and track ids need one entry per sample; got "
            f"{len(boxes)}, {len(labels)} and {len(track_ids)}."
        )
    for index, (box, label, track) in enumerate(zip(boxes, labels, track_ids, strict=True)):
        if box.ndim != 2 or box.shape[1] != GT_COLUMNS:
            raise BatchError(
                f"ground-truth boxes are (n, {GT_COLUMNS}); sample {index} has {tuple(box.shape)}."
            )
        if not len(box) == len(label) == len(track):
            raise BatchError(
                f"sample {index} has {len(box)} boxes, {len(label)} labels and {len(track)} track "
                "ids; the three must agree."
            )
    count = tuple(len(label) for label in labels)
    size = max(count, default=0)

    def rows(tensor: Tensor, value: int) -> Tensor:
        return pad(tensor.long(), (0, size - len(tensor)), value=value)

    def target(box: Tensor) -> Tensor:
        encoded = encode_boxes(box.to(dtype) if dtype is not None else box)
        return pad(encoded, (0, 0, 0, size - len(box)))

    return GroundTruth(
        target=torch.stack([target(box) for box in boxes]),
        label=torch.stack([rows(label, NO_CLASS) for label in labels]),
        track_id=torch.stack([rows(track, NO_TRACK) for track in track_ids]),
        count=count,
    )
