"""The named configurations of the Sparse4D family.

Numbers are those of the published configurations (REFERENCE B2, B4, C2 to C8). Where none is
published the docstring says what is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .backbones.config import EvaConfig, ResNetConfig, VoVNetConfig
from .config import (
    AggregationConfig,
    AnchorEncoderConfig,
    DecoderConfig,
    DepthReweightConfig,
    FPNConfig,
    ImageConfig,
    QueueConfig,
    Sparse4DConfig,
)

__all__ = ["MODELS"]

RESNET101 = (3, 4, 23, 3)


def sparse4dv3_r50() -> Sparse4DConfig:
    """Sparse4Dv3 with ResNet-50 at 256 x 704, as published (REFERENCE B4, B5)."""
    return Sparse4DConfig(name="sparse4dv3_r50")


def sparse4dv3_r101_512x1408() -> Sparse4DConfig:
    """v3 with ResNet-101. The configuration is not published: all but size and depth as R50."""
    return Sparse4DConfig(
        name="sparse4dv3_r101_512x1408",
        image=ImageConfig(size=(512, 1408)),
        backbone=ResNetConfig(layers=RESNET101),
    )


def sparse4dv3_vov99_640x1600() -> Sparse4DConfig:
    """v3 with VoVNet-99. The configuration is not published: all but size and backbone as R50."""
    return Sparse4DConfig(
        name="sparse4dv3_vov99_640x1600",
        image=ImageConfig(size=(640, 1600)),
        backbone=VoVNetConfig(),
    )


def sparse4dv3_eva02l_640x1600_offline() -> Sparse4DConfig:
    """v3 with EVA02-L that also looks at frames to come; for recordings.

    Its configuration is not published. Assumed: the maps of three later frames are sampled as v1
    samples earlier ones, with a fusion layer per decoder and without depth reweighting; the
    backbone's simple pyramid takes the place of the ResNet's maps; its position embedding has the
    grid of the image; the rest as R50. The yaw order of carried anchors is the correct one, as no
    published weights need the other.
    """
    return Sparse4DConfig(
        name="sparse4dv3_eva02l_640x1600_offline",
        image=ImageConfig(size=(640, 1600)),
        backbone=EvaConfig(position_grid=(40, 100)),
        queue=QueueConfig(length=3, frames="future"),
        legacy_yaw_order=False,
    )


def sparse4dv3_tiny() -> Sparse4DConfig:
    """v3 made small: 128 x 352, under 1.9 million parameters, quick on a CPU."""
    return Sparse4DConfig(
        name="sparse4dv3_tiny",
        embed_dims=64,
        image=ImageConfig(size=(128, 352)),
        backbone=ResNetConfig(
            block="basic", layers=(2, 2, 2, 2), widths=(24, 48, 80, 112), stem_channels=24
        ),
        anchor_encoder=AnchorEncoderConfig(dims=(32, 8, 8, 16)),
        decoder=DecoderConfig(num_layers=4, num_heads=4, ffn_channels=256, dropout=0.0),
        num_anchors=300,
        num_temporal=200,
        num_output=200,
        legacy_yaw_order=False,
    )


def sparse4dv2_r50_256x704() -> Sparse4DConfig:
    """Sparse4Dv2 with ResNet-50, as published (REFERENCE C8).

    Carried instances have ids, as in v3; the published v2 has none.
    """
    return Sparse4DConfig(
        name="sparse4dv2_r50_256x704",
        anchor_encoder=AnchorEncoderConfig("add", (256,) * 4, blocks=2, output_layer=True),
        decoder=DecoderConfig(decoupled=False),
        aggregation=AggregationConfig(stored_points=False),
        legacy_yaw_order=False,
        quality=False,
        decode_classes="all",
    )


def sparse4dv2_r101_512x1408() -> Sparse4DConfig:
    """v2 with ResNet-101. The configuration is not published: all but size and depth as R50."""
    return replace(
        sparse4dv2_r50_256x704(),
        name="sparse4dv2_r101_512x1408",
        image=ImageConfig(size=(512, 1408)),
        backbone=ResNetConfig(layers=RESNET101),
    )


def sparse4dv1_r101_h1_640x1600() -> Sparse4DConfig:
    """Sparse4D (v1) with ResNet-101 on single frames, as published (REFERENCE C2, C3, C6).

    Input is RGB; the published weights take BGR, and conversion reorders their first layer.
    """
    return Sparse4DConfig(
        name="sparse4dv1_r101_h1_640x1600",
        image=ImageConfig(size=(640, 1600), std=(1.0, 1.0, 1.0)),
        backbone=ResNetConfig(
            layers=RESNET101,
            frozen_stages=1,
            norm_eval=True,
            style="caffe",
            deformable=(False, False, True, True),
        ),
        neck=FPNConfig(start_level=1),
        depth=None,
        anchor_encoder=AnchorEncoderConfig("add", (256,) * 4, blocks=2, output_layer=True),
        decoder=DecoderConfig(
            num_single_frame=6,
            decoupled=False,
            first_attention=True,
            ffn="residual",
            ffn_channels=512,
        ),
        aggregation=AggregationConfig(
            stored_points=False,
            camera_embedding=False,
            border="zeros",
            dropout=0.0,
            output_dropout=0.1,
        ),
        num_temporal=0,
        max_time_interval=5.0,
        legacy_yaw_order=False,
        refine_yaw=False,
        quality=False,
        decode_classes="all",
        learned_features=True,
        refine_interval="default",
        depth_reweight=DepthReweightConfig(),
    )


def sparse4dv1_r101_h4_640x1600() -> Sparse4DConfig:
    """v1 that also samples the feature maps of the last three frames (REFERENCE C4, C5, C7).

    Refinement divides by the time since the newest of them, as the original code does.
    """
    return replace(
        sparse4dv1_r101_h1_640x1600(),
        name="sparse4dv1_r101_h4_640x1600",
        queue=QueueConfig(length=3),
        refine_interval="elapsed",
    )


MODELS: dict[str, Callable[[], Sparse4DConfig]] = {
    make.__name__: make
    for make in (
        sparse4dv3_r50,
        sparse4dv3_r101_512x1408,
        sparse4dv3_vov99_640x1600,
        sparse4dv3_eva02l_640x1600_offline,
        sparse4dv3_tiny,
        sparse4dv2_r50_256x704,
        sparse4dv2_r101_512x1408,
        sparse4dv1_r101_h1_640x1600,
        sparse4dv1_r101_h4_640x1600,
    )
}
