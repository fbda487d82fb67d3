"""Training settings of the other models of the Sparse4D family.

Each says what is published (REFERENCE B2, C2 to C8) and what is assumed. Where only the results of
a model are published, the recipe of its R50 sibling is taken, at the image size of the table.
"""

from __future__ import annotations

from dataclasses import replace

from ..data.config import AugmentConfig, DataConfig
from ..objectives.assignment import CostWeights
from ..objectives.denoising import DenoisingConfig
from ..objectives.detection import TRAFFIC_CONE, LossConfig
from .config import FitConfig, ModelSettings, OptimiserSettings, RunSettings

__all__ = ["FAMILY"]

V2_LOSS = LossConfig(reversible=(), denoising=DenoisingConfig(groups=0))
V1_LOSS = LossConfig(
    class_columns={TRAFFIC_CONE: (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0)},
    reversible=(),
    depth=0.0,
    cost=CostWeights(columns=(2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    denoising=DenoisingConfig(groups=0),
)


def sparse4dv3_r101_512x1408() -> FitConfig:
    """Assumed: the R50 recipe. The published results start from nuImages weights."""
    return FitConfig(
        name="sparse4dv3_r101_512x1408",
        model=ModelSettings(name="sparse4dv3_r101_512x1408", checkpointing=True),
        data=DataConfig(image_size=(512, 1408)),
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=48),
        run=RunSettings(batch=6, epochs=100, precision="fp16"),
    )


def sparse4dv3_vov99_640x1600() -> FitConfig:
    """Assumed: the R50 recipe, backbone rate x 0.1 for weights trained on depth (DD3D)."""
    return FitConfig(
        name="sparse4dv3_vov99_640x1600",
        model=ModelSettings(name="sparse4dv3_vov99_640x1600", checkpointing=True),
        data=DataConfig(image_size=(640, 1600)),
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=48, backbone_multiplier=0.1),
        run=RunSettings(batch=4, epochs=100, precision="bf16"),
    )


def sparse4dv3_eva02l_640x1600_offline() -> FitConfig:
    """Assumed: the R50 recipe with the backbone's rate x 0.1 and no frame left out.

    Frames are never skipped or reversed: the frames to come are the next ones.
    """
    return FitConfig(
        name="sparse4dv3_eva02l_640x1600_offline",
        model=ModelSettings(name="sparse4dv3_eva02l_640x1600_offline", checkpointing=True),
        data=DataConfig(image_size=(640, 1600), skip_probability=0.0, reverse_probability=0.0),
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=48, backbone_multiplier=0.1),
        run=RunSettings(batch=2, epochs=100, precision="bf16"),
    )


def sparse4dv2_r50_256x704() -> FitConfig:
    """Published: 64 samples per step, 43 900 steps; fp16 backbone and neck with loss scale 32."""
    return FitConfig(
        name="sparse4dv2_r50_256x704",
        model=ModelSettings(name="sparse4dv2_r50_256x704"),
        data=DataConfig(image_size=(256, 704)),
        loss=V2_LOSS,
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=64),
        run=RunSettings(batch=8, epochs=100, precision="fp16"),
    )


def sparse4dv2_r101_512x1408() -> FitConfig:
    """Assumed: the R50 recipe. The published results start from nuImages weights."""
    recipe = sparse4dv2_r50_256x704()
    return replace(
        recipe,
        name="sparse4dv2_r101_512x1408",
        model=ModelSettings(name="sparse4dv2_r101_512x1408", checkpointing=True),
        data=DataConfig(image_size=(512, 1408)),
    )


def sparse4dv1_r101_h1_640x1600() -> FitConfig:
    """Published: 8 samples per step, 24 epochs, FCOS3D start weights, frozen norms.

    Images are cropped and photometrically distorted, neither resized nor flipped nor turned. Give
    `model.backbone_weights`: fresh weights overflow fp16, as frozen norms do not hold them back.
    """
    still = AugmentConfig(
        resize=(1.0, 1.0), rotate_degrees=(0.0, 0.0), flip=False, bev_rotation=(0.0, 0.0)
    )
    return FitConfig(
        name="sparse4dv1_r101_h1_640x1600",
        model=ModelSettings(
            name="sparse4dv1_r101_h1_640x1600", batch_norm="frozen", checkpointing=True
        ),
        data=DataConfig(image_size=(640, 1600), depth_strides=(), sequence_parts=0, augment=still),
        loss=V1_LOSS,
        optimiser=OptimiserSettings(
            lr=2e-4, reference_batch=8, backbone_multiplier=0.1, weight_decay=0.01, clip=35.0
        ),
        run=RunSettings(batch=1, epochs=24, precision="fp16"),
    )


def sparse4dv1_r101_h4_640x1600() -> FitConfig:
    """As H1, in sequences: every step finds the feature maps of the last three frames.

    The published code shuffles all samples and computes the maps of the past anew in each step,
    without gradients, from frames one or two apart (the same for all three). Here the samples of
    a slot come in order of time and the maps are carried from step to step: a quarter of the
    backbone passes, maps that one to three updates of the weights ago gave, and frames one or two
    apart, drawn for each step. What the head computes from the maps is the same.
    """
    recipe = sparse4dv1_r101_h1_640x1600()
    return replace(
        recipe,
        name="sparse4dv1_r101_h4_640x1600",
        model=replace(recipe.model, name="sparse4dv1_r101_h4_640x1600"),
        data=replace(recipe.data, sequence_parts=1, reverse_probability=0.0),
    )


FAMILY = (
    sparse4dv3_r101_512x1408,
    sparse4dv3_vov99_640x1600,
    sparse4dv3_eva02l_640x1600_offline,
    sparse4dv2_r50_256x704,
    sparse4dv2_r101_512x1408,
    sparse4dv1_r101_h1_640x1600,
    sparse4dv1_r101_h4_640x1600,
)
