"""The models that `model_zoo.py` measures: configurations, moderate random weights, frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import s4d_core
from s4d_core import Sparse4D, Sparse4DConfig
from s4d_core.backbones.deform_conv import DeformConv2d
from s4d_core.backbones.resnet import BasicBlock, Bottleneck
from s4d_core.backbones.vovnet import Block
from s4d_core.refinement import Refinement

__all__ = ["frame", "prepared", "resized", "small"]

RESIDUAL_GAIN = 0.2
"""Of the last norm in each residual block, where a fresh one has 1."""
REFINEMENT_GAIN = 0.1
"""Of the corrections that a decoder adds to a box."""


def small(config: Sparse4DConfig) -> Sparse4DConfig:
    """The same parts with few channels, blocks and instances: to try this program on a CPU."""
    backbone: Any = config.backbone
    if isinstance(backbone, s4d_core.VoVNetConfig):
        backbone = replace(
            backbone,
            stem_channels=(8, 8, 16),
            widths=(8,) * 4,
            out_channels=(16, 24, 32, 32),
            layers=2,
            blocks=(1, 1, 2, 1),
        )
    elif isinstance(backbone, s4d_core.EvaConfig):
        backbone = replace(
            backbone,
            width=64,
            depth=3,
            num_heads=2,
            hidden=96,
            window_size=2,
            global_blocks=(2,),
            position_grid=(4, 12),
            pyramid_channels=32,
        )
    else:
        backbone = replace(backbone, layers=(1, 1, 2, 1), widths=(8, 8, 16, 16), stem_channels=8)
    config = config.replace(backbone=backbone)
    return s4d_core.reduced_config(config, image_size=(64, 192)).replace(name=config.name)


def resized(config: Sparse4DConfig, size: tuple[int, int]) -> Sparse4DConfig:
    """The whole network for images of another size."""
    backbone: Any = config.backbone
    if isinstance(backbone, s4d_core.EvaConfig):
        patch = backbone.patch_size
        backbone = replace(backbone, position_grid=(size[0] // patch, size[1] // patch))
    return config.replace(image=replace(config.image, size=size), backbone=backbone)


def pictures(config: Sparse4DConfig) -> Tensor:
    """(1, N, H, W, 3) uint8: smooth random pictures from one half of the cameras, noise from the
    other, so that norms settle on what roll-outs and what training steps are given."""
    draw = torch.Generator().manual_seed(0)
    cameras, (height, width) = config.num_cameras, config.image.size
    coarse = torch.rand(cameras, 3, height // 16, width // 16, generator=draw) * 255
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    shown = smooth + torch.randn(smooth.shape, generator=draw) * 6
    shown[::2] = torch.rand(shown[::2].shape, generator=draw) * 255
    return shown.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)[None]


def prepared(config: Sparse4DConfig, device: str) -> Sparse4D:
    """A model in eval mode with random weights that behave as trained ones do.

    A fresh ResNet whose norms are not used in training mode (v1) adds up values of 70 000 at 320 x
    800, more than float16 holds: the recipe's fp16 needs the statistics of the weights it starts
    from. Statistics settled on one kind of picture amplify any other, rounding included; so do
    decoders that throw boxes about. So all norms settle on smooth pictures and on noise at once,
    residual branches start small, as is usual when a ResNet is trained from nothing, and
    decoders correct boxes by centimetres, as the later ones of a trained model do.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = s4d_core.build_model(config)
    model = model.to(device).eval()
    for module in model.modules():
        if isinstance(module, DeformConv2d):  # offsets of about a pixel instead of none
            nn.init.normal_(module.conv_offset.weight, std=0.01)
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, RESIDUAL_GAIN)
        if isinstance(module, BasicBlock):
            nn.init.constant_(module.bn2.weight, RESIDUAL_GAIN)
        if isinstance(module, Block) and module.residual:
            norms = [part for part in module.concat if isinstance(part, nn.BatchNorm2d)]
            nn.init.constant_(norms[0].weight, RESIDUAL_GAIN)
        if isinstance(module, Refinement):
            with torch.no_grad():
                module.box_scale.scale[: module.num_kept] *= REFINEMENT_GAIN
                module.box_scale.scale[8:] *= REFINEMENT_GAIN
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model.pyramid(model.normalise(pictures(config).to(device)))
    return model.eval()


def frame(config: Sparse4DConfig, device: str, step: int) -> dict[str, Tensor]:
    """A frame of noise from cameras in a ring, half a second after the one before."""
    cameras, (height, width) = config.num_cameras, config.image.size
    draw = torch.Generator().manual_seed(step)
    matrix = torch.zeros(1, cameras, 4, 4)
    for camera in range(cameras):
        angle = torch.tensor(camera * 2 * torch.pi / cameras)
        forward = torch.stack([angle.cos(), angle.sin(), torch.zeros(())])
        right = torch.stack([angle.sin(), -angle.cos(), torch.zeros(())])
        down = torch.tensor([0.0, 0.0, -1.0])
        focal = 0.8 * width
        matrix[:, camera, 0, :3] = focal * right + width / 2 * forward
        matrix[:, camera, 1, :3] = focal * down + height / 2 * forward
        matrix[:, camera, 2, :3] = forward
        matrix[:, camera, 3, 3] = 1.0
    values = {
        "images": torch.randn(1, cameras, 3, height, width, generator=draw),
        "lidar2img": matrix,
        "image_wh": torch.tensor([width, height]).float().expand(1, cameras, 2).contiguous(),
        "timestamp": torch.tensor([0.5 * step], dtype=torch.float64),
        "lidar2global": torch.eye(4, dtype=torch.float64)[None],
    }
    return {name: value.to(device) for name, value in values.items()}
