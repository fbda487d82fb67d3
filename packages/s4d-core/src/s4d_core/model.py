"""Sparse4D: images, calibration and state in; boxes and the next state out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .aggregation_op import FeatureMaps, layout_tables
from .backbones import build_backbone
from .config import Sparse4DConfig
from .denoising import DenoisingOutput, DenoisingQueries
from .depth import DepthBranch
from .errors import InvalidInputError
from .fpn import FPN
from .head import FrameOutput, SparseHead
from .state import BankState, BankTrace, State

__all__ = ["Sparse4D", "Sparse4DOutput"]


@dataclass(frozen=True)
class Sparse4DOutput:
    """Predictions of one frame and the state for the next.

    Attributes:
        cls, box, quality, track_ids, denoising, trace: as in `FrameOutput`.
        state: hand it to the next call.
        depth: per level (B * N, 1, H_l, W_l) metres where `focal` was given in training, or None.
    """

    cls: list[Tensor | None]
    box: list[Tensor]
    quality: list[Tensor | None]
    track_ids: Tensor
    state: State
    denoising: DenoisingOutput | None
    trace: BankTrace
    depth: list[Tensor] | None


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
        levels = config.neck.num_levels
        self.backbone = build_backbone(config.backbone)
        self.neck = FPN(config.backbone.out_channels[:levels], config.embed_dims)
        self.depth_branch = None
        if config.depth is not None:
            self.depth_branch = DepthBranch(
                config.embed_dims, config.depth.num_levels, config.depth.reference_focal
            )
        self.head = SparseHead(config, anchors)
        self._sizes = config.backbone.level_sizes(config.image.size)[:levels]
        self.make_tables()

    def make_tables(self) -> None:
        """Constants of the configuration as buffers, on the default device.

        They are not part of the weights. Layout tables hold for the configured image size and
        are kept on the device, so that no frame has to copy them there.
        """
        image = self.config.image
        self.register_buffer("image_mean", torch.tensor(image.mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(image.std), persistent=False)
        shapes, starts = layout_tables(self._sizes, self.config.num_cameras)
        self.register_buffer("spatial_shapes", torch.tensor(shapes), persistent=False)
        self.register_buffer("level_start_index", torch.tensor(starts), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, N, H, W, 3) at network size to the (B, N, 3, H, W) input of `forward`."""
        values = (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std
        return values.permute(0, 1, 4, 2, 3)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, N, 3, H, W) to levels (B * N, C, H_l, W_l), fine to coarse."""
        maps = self.backbone(images.flatten(0, 1))
        return self.neck(maps[: self.config.neck.num_levels])

    def arrange(self, levels: list[Tensor], num_cameras: int) -> FeatureMaps:
        """Pyramid levels to the layout of the aggregation operator."""
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in levels)
        rows = [x.flatten(2).transpose(1, 2) for x in levels]
        feature = torch.cat(rows, dim=1)
        feature = feature.reshape(-1, num_cameras * feature.shape[1], feature.shape[2])
        shapes, starts = self.spatial_shapes, self.level_start_index
        if sizes != self._sizes or num_cameras != self.config.num_cameras:
            tables = layout_tables(sizes, num_cameras)
            shapes, starts = (torch.tensor(t, device=feature.device) for t in tables)
        return FeatureMaps(feature, shapes, starts, sizes)

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
            self.features(images),
            lidar2img,
            image_wh,
            prev_to_current,
            time_interval,
            bank,
            denoising,
            every_layer,
        )

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
    ) -> Sparse4DOutput:
        """One frame with absolute time and pose.

        Args:
            images, lidar2img, image_wh, denoising, every_layer: as in `frame`.
            timestamp: (B,) float64 seconds.
            lidar2global: (B, 4, 4) float64.
            state: of the previous frame; None, or another batch size: a first frame.
            focal: (B, N) focal lengths in pixels; given in training, depth is predicted too.

        Raises:
            InvalidInputError: shapes that do not belong together, or time or pose not float64.
        """
        self._check(images, lidar2img, image_wh, timestamp, lidar2global)
        batch = images.shape[0]
        dtype = self.head.bank.anchor.dtype
        if state is None or state.timestamp.shape[0] != batch:
            bank = BankState.empty(self.config, batch, images.device, dtype)
            state = State(bank, timestamp, lidar2global)
        prev_to_current, interval = _step(state, timestamp, lidar2global)
        levels = self.pyramid(images)
        frame = self.head(
            self.arrange(levels, images.shape[1]),
            lidar2img,
            image_wh,
            prev_to_current.to(dtype),
            interval.to(dtype),
            state.bank,
            denoising,
            every_layer,
        )
        depth = None
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
        )

    def _check(
        self,
        images: Tensor,
        lidar2img: Tensor,
        image_wh: Tensor,
        timestamp: Tensor,
        lidar2global: Tensor,
    ) -> None:
        if images.dim() != 5 or images.shape[2] != 3:
            raise InvalidInputError(f"expected images (B, N, 3, H, W), got {tuple(images.shape)}")
        batch, cameras = images.shape[:2]
        expected = {
            "lidar2img": (lidar2img, (batch, cameras, 4, 4)),
            "image_wh": (image_wh, (batch, cameras, 2)),
            "timestamp": (timestamp, (batch,)),
            "lidar2global": (lidar2global, (batch, 4, 4)),
        }
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise InvalidInputError(
                    f"expected {name} {shape} for images {tuple(images.shape)}, got "
                    f"{tuple(value.shape)}"
                )
        for name, value in (("timestamp", timestamp), ("lidar2global", lidar2global)):
            if value.dtype != torch.float64:
                raise InvalidInputError(
                    f"expected {name} in float64, got {value.dtype}: float32 cannot hold absolute "
                    "times and global positions"
                )


def _step(state: State, timestamp: Tensor, lidar2global: Tensor) -> tuple[Tensor, Tensor]:
    """Transform and seconds from the state's frame to this one, in float64.

    Samples without a past get the identity and 0, whatever the state holds for them.
    """
    valid = state.bank.valid
    # inv_ex: inv would wait for the device to report singular matrices.
    inverse = torch.linalg.inv_ex(lidar2global).inverse
    step = inverse @ state.lidar2global
    identity = torch.eye(4, dtype=step.dtype, device=step.device)
    return (
        torch.where(valid[:, None, None], step, identity),
        torch.where(valid, timestamp - state.timestamp, 0.0),
    )
