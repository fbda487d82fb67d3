"""Sparse4D: images, calibration and state in; boxes and the next state out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .aggregation_op import FeatureMaps, layout_tables
from .backbones import build_backbone
from .config import Sparse4DConfig
from .delayed import delayed_frame
from .denoising import DenoisingQueries
from .depth import DepthBranch
from .errors import InvalidInputError
from .fpn import FPN
from .frame_inputs import check_frame, farthest_first
from .head import SparseHead
from .observation import Observation, remember, seen_from, step
from .outputs import FrameOutput, Sparse4DOutput
from .state import BankState, State
from .temporal_sampling import View

__all__ = ["Sparse4D"]


class Sparse4D(nn.Module):
    """The temporal detector as a function of images, calibration and state.

    `build_model` makes one with fresh weights, `load_checkpoint` one with trained weights.

    Args:
        config: what to build.
        anchors: (num_anchors, 11) start boxes.
    """

    spatial_shapes: Tensor
    level_start_index: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Sparse4DConfig, anchors: Tensor) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        first, levels = config.neck.start_level, config.neck.num_levels
        self._used = slice(first, first + levels)  # of the backbone's maps
        channels = config.backbone.out_channels[self._used]
        self.neck = FPN(channels, config.embed_dims, levels - len(channels))
        self.depth_branch = None
        if config.depth is not None:
            self.depth_branch = DepthBranch(
                config.embed_dims, config.depth.num_levels, config.depth.reference_focal
            )
        self.head = SparseHead(config, anchors)
        self._padded = config.aggregation.border == "zeros"
        frame = 2 if self._padded else 0
        self._sizes = tuple((h + frame, w + frame) for h, w in config.level_sizes)
        self.make_tables()

    def make_tables(self) -> None:
        """Constants of the configuration as buffers, on the default device.

        They are not part of the weights. Layout tables hold for the configured image size and
        are kept on the device, so that no frame has to copy them there.
        """
        image = self.config.image
        self.register_buffer("image_mean", torch.tensor(image.mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(image.std), persistent=False)
        shapes, starts = layout_tables(self._sizes, self.config.num_cameras, self._padded)
        self.register_buffer("spatial_shapes", torch.tensor(shapes), persistent=False)
        self.register_buffer("level_start_index", torch.tensor(starts), persistent=False)
        self.backbone.make_tables(image.size)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, N, H, W, 3) at network size to the (B, N, 3, H, W) input of `forward`."""
        values = (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std
        return values.permute(0, 1, 4, 2, 3)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, N, 3, H, W) to levels (B * N, C, H_l, W_l), fine to coarse."""
        return self.neck(self.backbone(images.flatten(0, 1))[self._used])

    def arrange(self, levels: list[Tensor], num_cameras: int) -> FeatureMaps:
        """Pyramid levels to the layout of the aggregation operator."""
        if self._padded:
            levels = [nn.functional.pad(x, (1, 1, 1, 1)) for x in levels]
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)
        rows = [x.flatten(2).transpose(1, 2) for x in levels]
        feature = torch.cat(rows, dim=1)
        feature = feature.reshape(-1, num_cameras * feature.shape[1], feature.shape[2])
        shapes, starts = self.spatial_shapes, self.level_start_index
        if sizes != self._sizes or num_cameras != self.config.num_cameras:
            tables = layout_tables(sizes, num_cameras, self._padded)
            shapes, starts = (torch.tensor(t, device=feature.device) for t in tables)
        return FeatureMaps(feature, shapes, starts, sizes, self._padded)

    def features(self, images: Tensor) -> FeatureMaps:
        """Images (B, N, 3, H, W), normalised, to pyramid features of all cameras."""
        return self.arrange(self.pyramid(images), images.shape[1])

    def depth(self, levels: list[Tensor], focal: Tensor | None = None) -> list[Tensor]:
        """Auxiliary depth of pyramid levels, see `DepthBranch.forward`."""
        if self.depth_branch is None:
            raise InvalidInputError("this model has no depth branch; set config.depth")
        return self.depth_branch(levels, focal)

    def frame(
        self,
        images: Tensor,
        lidar2img: Tensor,
        image_wh: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
        bank: BankState,
        denoising: DenoisingQueries | None = None,
        every_layer: bool = False,
    ) -> FrameOutput:
        """One frame as a pure function of tensors: no control flow on values, exportable.

        Args:
            images: (B, N, 3, H, W), normalised.
            lidar2img: (B, N, 4, 4), LiDAR frame to pixels of the network input.
            image_wh: (B, N, 2) width and height of the network input.
            prev_to_current: (B, 4, 4), LiDAR frame of the previous frame to this one. Form it in
                float64 before casting. Any finite value where `bank.valid` is False.
            time_interval: (B,) true seconds since the previous frame; may be 0 or a gap.
            bank: the carried state; `BankState.empty` before a first frame.
            denoising: noisy queries of training.
            every_layer: compute cls and quality of every decoder in eval mode too.
        """
        return self.head(
            View(self.features(images), lidar2img),
            image_wh,
            prev_to_current,
            time_interval,
            bank,
            denoising,
            every_layer,
        )

    def delayed_frame(
        self,
        images: Tensor,
        lidar2img: Tensor,
        image_wh: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
        bank: BankState,
    ) -> tuple[FrameOutput, Tensor]:
        """A model that looks at frames to come, fed as frames arrive, see `delayed`."""
        view = View(self.features(images), lidar2img)
        return delayed_frame(self.head, view, image_wh, prev_to_current, time_interval, bank)

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        image_wh: Tensor,
        timestamp: Tensor,
        lidar2global: Tensor,
        state: State | None = None,
        denoising: DenoisingQueries | None = None,
        focal: Tensor | None = None,
        every_layer: bool = False,
        future: Sequence[Observation] = (),
        depth_boxes: Tensor | None = None,
    ) -> Sparse4DOutput:
        """One frame with absolute time and pose.

        Args:
            images, lidar2img, image_wh, denoising, every_layer: as in `frame`.
            timestamp: (B,) float64 seconds.
            lidar2global: (B, 4, 4) float64.
            state: of the previous frame; None, or another batch size: a first frame.
            focal: (B, N) focal lengths in pixels; given in training, depth is predicted too.
            future: frames to come, the nearest first, for models that sample them.
            depth_boxes: (B, G, 11) boxes of objects; with depth reweighting, the confidence of
                their key points is returned for its loss.

        Raises:
            InvalidInputError: shapes that do not belong together, or time or pose not float64.
        """
        check_frame(images, lidar2img, image_wh, timestamp, lidar2global)
        dtype = self.head.bank.anchor.dtype
        levels = self.pyramid(images)
        view = View(self.arrange(levels, images.shape[1]), lidar2img)
        state = self._past(view.maps, timestamp, lidar2global, state)
        prev_to_current, interval = step(state, timestamp, lidar2global)
        frame = self.head(
            view,
            image_wh,
            prev_to_current.to(dtype),
            interval.to(dtype),
            state.bank,
            denoising,
            every_layer,
            seen_from(timestamp, lidar2global, farthest_first(future, self.config), dtype),
        )
        depth = confidence = None
        if depth_boxes is not None:
            confidence = self.head.depth_confidence(view, depth_boxes, image_wh)
        if focal is not None and self.training and self.depth_branch is not None:
            depth = self.depth_branch(levels, focal)
        return Sparse4DOutput(
            frame.cls,
            frame.box,
            frame.quality,
            frame.track_ids,
            State(frame.bank, timestamp, lidar2global),
            frame.denoising,
            frame.trace,
            depth,
            confidence,
        )

    @torch.no_grad()
    def observe(
        self, images: Tensor, lidar2img: Tensor, timestamp: Tensor, lidar2global: Tensor
    ) -> Observation:
        """Feature maps of a frame, without gradients: for `remember`, or as a frame to come.

        Arguments as in `forward`.
        """
        return Observation(self.features(images), lidar2img, timestamp, lidar2global)

    def remember(self, seen: Observation, state: State | None = None) -> State:
        """The state after a frame that is only looked at: fills the queue of past frames.

        Raises:
            InvalidInputError: this model keeps no feature maps.
        """
        queue = self.config.queue
        if queue is None or queue.frames != "past":
            raise InvalidInputError(f"{self.config.name} keeps no feature maps of past frames")
        state = self._past(seen.maps, seen.timestamp, seen.lidar2global, state)
        return remember(state, seen)

    def _past(
        self, maps: FeatureMaps, timestamp: Tensor, lidar2global: Tensor, state: State | None
    ) -> State:
        """The state given, or an empty one where it is none of this batch."""
        batch, rows = maps.feature.shape[:2]
        if state is not None and state.timestamp.shape[0] == batch:
            queue = state.bank.queue
            if queue is not None and queue.maps.shape[2] != rows:
                raise InvalidInputError(
                    f"the state holds feature maps of {queue.maps.shape[2]} rows, this frame has "
                    f"{rows}; reset the state where image sizes or cameras change"
                )
            return state
        dtype, device = self.head.bank.anchor.dtype, maps.feature.device
        bank = BankState.empty(self.config, batch, device, dtype, rows)
        return State(bank, timestamp, lidar2global)
