"""One frame on fixed memory: the steps that a CUDA graph records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..decode import Ranked, decode_ranked
from ..delayed import delayed_frame
from ..model import Sparse4D
from ..state import BankState
from ..temporal_sampling import View
from .images import ImageInput

__all__ = ["Frame", "Geometry"]

_PACKED = 16  # 32-bit words per detection: 10 box, 3 scores, label, id (two)


class Geometry(NamedTuple):
    """The small inputs of a frame.

    Attributes:
        lidar2img: (B, N, 4, 4) float32.
        prev_to_current: (B, 4, 4) float32.
        time_interval: (B,) float32 seconds.
        valid: (B,) float32, 0 for a first frame.
    """

    lidar2img: Tensor
    prev_to_current: Tensor
    time_interval: Tensor
    valid: Tensor


class Frame:
    """Memory and steps of one frame.

    Args:
        model: on its device, in its types.
        graph: images (K, 3 or more, H, W) to pyramid levels.
        images: where images come in.
        batch: B.
        wrap: applied to the head's function, such as `torch.compile`.
    """

    def __init__(
        self,
        model: Sparse4D,
        graph: fx.GraphModule,
        images: ImageInput,
        batch: int,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        config, device = model.config, model.spatial_shapes.device
        self.model, self.images, self.batch = model, images, batch
        self._graph = graph
        self._head = wrap(self._head_step)
        queue = config.queue
        self.delay = queue.length if queue is not None and queue.frames == "future" else 0
        self.bank = BankState.empty(config, batch, device, torch.float32, delayed=self.delay > 0)
        if self.bank.queue is not None:  # maps are kept in the type that they come in
            kept = replace(self.bank.queue, maps=self.bank.queue.maps.to(images.dtype))
            self.bank = replace(self.bank, queue=kept)
        height, width = config.image.size
        wh = torch.tensor([width, height], dtype=torch.float32, device=device)
        self._image_wh = wh.expand(batch, config.num_cameras, 2).contiguous()
        pinned = device.type == "cuda"
        # Everything small goes up in one copy and comes down in one.
        words = batch * (16 * config.num_cameras + 16 + 1 + 1)
        self._host_in = torch.zeros(words, pin_memory=pinned)
        self._device_in = torch.zeros(words, device=device)
        self.geometry = self._views(self._host_in)
        self._geometry = self._views(self._device_in)
        self._packed = torch.zeros(
            (batch, config.num_output, _PACKED), dtype=torch.int32, device=device
        )
        self._host_out = torch.zeros(self._packed.shape, dtype=torch.int32, pin_memory=pinned)

    def steps(self) -> dict[str, Callable[[], None]]:
        """The frame's parts by name, in order. Each reads what the one before it left."""
        return {
            "resize and normalise": self._prepare,
            "backbone and neck": self._features,
            "head and decoding": self._decide,
            "results and state": self._finish,
        }

    def run(self) -> None:
        """One frame, enqueued on the current stream (on the CPU: computed)."""
        for step in self.steps().values():
            step()

    def detections(self) -> Ranked:
        """A copy of the last frame's results on the host. Wait for the frame first.

        Labels are -1 where a model that looks ahead had no frame to search.
        """
        words = self._host_out.clone()
        values = words[..., :13].view(torch.float32)
        return Ranked(
            boxes=values[..., :10],
            scores=values[..., 10],
            class_scores=values[..., 11],
            own_scores=values[..., 12],
            labels=words[..., 13].long(),
            track_ids=words[..., 14:].contiguous().view(torch.int64).squeeze(-1),
        )

    def _views(self, words: Tensor) -> Geometry:
        batch, cameras = self.batch, self.model.config.num_cameras
        matrices, pose, interval, valid = words.split(
            [batch * cameras * 16, batch * 16, batch, batch]
        )
        return Geometry(
            matrices.view(batch, cameras, 4, 4), pose.view(batch, 4, 4), interval, valid
        )

    def _prepare(self) -> None:
        self._device_in.copy_(self._host_in, non_blocking=True)
        self._images = self.images.prepare()

    def _features(self) -> None:
        levels = self._graph(self._images)
        self._maps = self.model.arrange(list(levels), self.model.config.num_cameras)

    def _decide(self) -> None:
        self._found, self._next = self._head(self._maps.feature, self._geometry, self.bank)

    def _head_step(
        self, feature: Tensor, geometry: Geometry, bank: BankState
    ) -> tuple[Ranked, BankState]:
        """Decoders, bank and decoding."""
        bank = replace(bank, valid=geometry.valid != 0)
        view = View(self._maps._replace(feature=feature), geometry.lidar2img)
        given = (view, self._image_wh, geometry.prev_to_current, geometry.time_interval, bank)
        ready = None
        if self.delay:
            out, ready = delayed_frame(self.model.head, *given)
        else:
            out = self.model.head(*given)
        cls = out.cls[-1]
        assert cls is not None  # the last decoder always has it
        found = decode_ranked(cls, out.quality[-1], out.box[-1], out.track_ids, self.model.config)
        if ready is not None:
            found = found._replace(labels=torch.where(ready[:, None], found.labels, -1))
        return found, out.bank

    def _finish(self) -> None:
        found = self._found
        scores = torch.stack([found.scores, found.class_scores, found.own_scores], dim=-1)
        self._packed.view(torch.float32)[..., :10].copy_(found.boxes)
        self._packed.view(torch.float32)[..., 10:13].copy_(scores)
        self._packed[..., 13].copy_(found.labels)
        self._packed[..., 14:].copy_(found.track_ids.unsqueeze(-1).view(torch.int32))
        for old, new in zip(tree_leaves(self.bank), tree_leaves(self._next), strict=True):
            old.copy_(new)
        self._host_out.copy_(self._packed, non_blocking=True)
