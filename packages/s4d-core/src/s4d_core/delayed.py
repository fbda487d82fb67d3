"""A model that looks at frames to come, as a function of frames as they arrive.

With K frames to come, the frame that arrives is the last one needed to detect on the frame K
steps before it. So the state holds the K frames before the arriving one, and each call detects on
the oldest of them. The first K calls detect on nothing (`ready` False).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .feature_queue import FeatureQueue, invert_rigid
from .head import SparseHead
from .outputs import FrameOutput
from .state import BankState
from .temporal_sampling import Other, View

__all__ = ["delayed_frame"]


def delayed_frame(
    head: SparseHead,
    view: View,
    image_wh: Tensor,
    prev_to_current: Tensor,
    time_interval: Tensor,
    bank: BankState,
) -> tuple[FrameOutput, Tensor]:
    """One step: a frame arrives, the one K steps before it is searched. Exportable.

    Args:
        head: of a model with `config.queue.frames == "future"`.
        view, image_wh: of the arriving frame, as in `SparseHead.forward`.
        prev_to_current, time_interval: from the frame that arrived before, rigid, and seconds.
        bank: `BankState.empty(config, ..., delayed=True)` at first. `valid` False where the frame
            before does not count; its frames are forgotten without being searched.

    Returns:
        the output of `Sparse4D.frame` for the searched frame, whose `bank` is the next state; and
        `ready` (B,), False where there was no frame to search and the output means nothing.
    """
    queue = bank.queue
    assert queue is not None
    last = queue.maps.shape[1] - 1  # the frame to search; the one after it was searched before
    to_entry = queue.from_newest @ invert_rigid(prev_to_current).unsqueeze(1)
    age = time_interval[:, None] + queue.age
    filled = queue.filled & bank.valid[:, None]
    back = invert_rigid(to_entry[:, last])  # from the searched frame to the arriving one
    sure = torch.ones_like(bank.valid)
    future = [Other(view, back, -age[:, last], sure)]
    for i in range(last):
        maps = view.maps._replace(feature=queue.maps[:, i])
        future.append(
            Other(
                View(maps, queue.lidar2img[:, i]),
                to_entry[:, i] @ back,
                age[:, i] - age[:, last],
                sure,
            )
        )
    frame = head(
        View(view.maps._replace(feature=queue.maps[:, last]), queue.lidar2img[:, last]),
        image_wh,
        to_entry[:, last] @ invert_rigid(to_entry[:, last + 1]),
        age[:, last + 1] - age[:, last],
        replace(bank, queue=None, valid=filled[:, last + 1]),
        future=future,
    )
    ready = filled[:, last]
    identity = torch.eye(4, dtype=back.dtype, device=back.device).expand_as(back).unsqueeze(1)
    following = FeatureQueue(
        maps=torch.cat([view.maps.feature.unsqueeze(1), queue.maps[:, :-1]], dim=1),
        lidar2img=torch.cat([view.lidar2img.unsqueeze(1), queue.lidar2img[:, :-1]], dim=1),
        from_newest=torch.cat([identity, to_entry[:, :-1]], dim=1),
        age=torch.cat([torch.zeros_like(age[:, :1]), age[:, :-1]], dim=1),
        filled=torch.cat([sure.unsqueeze(1), filled[:, :-1]], dim=1),
    )
    counter = torch.where(ready.any(), frame.bank.id_counter, bank.id_counter)
    after = replace(frame.bank, queue=following, id_counter=counter, valid=sure)
    return replace(frame, bank=after), ready
