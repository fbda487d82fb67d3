"""The named training settings.

`sparse4dv3_r50_256x704` is the published recipe of Sparse4D v3 (8 devices x 6 samples, 100 epochs);
`sparse4dv3_r50_256x704_bs88` that of SparseEnd2End (4 x 22, 150 epochs). The others are for the
synthetic world and for checks; `family` holds those of the other models.
"""

from __future__ import annotations

from collections.abc import Callable

from ..data.config import AugmentConfig, DataConfig
from ..errors import ConfigError
from ..objectives.assignment import CostWeights
from ..objectives.detection import LossConfig
from .config import FitConfig, ModelSettings, OptimiserSettings, RunSettings
from .family import FAMILY
from .settings import nearest

NO_AUGMENT = AugmentConfig(
    resize=(1.0, 1.0),
    rotate_degrees=(0.0, 0.0),
    flip=False,
    bev_rotation=(0.0, 0.0),
    photometric=False,
    grid_mask_probability=0.0,
)
"""The evaluation transform, as a training augmentation."""


def sparse4dv3_r50_256x704() -> FitConfig:
    """Published: 48 samples per step, 58 600 steps; fp16 backbone and neck with loss scale 32."""
    return FitConfig(
        name="sparse4dv3_r50_256x704",
        model=ModelSettings(name="sparse4dv3_r50", checkpointing=False),
        data=DataConfig(image_size=(256, 704)),
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=48),
        run=RunSettings(batch=6, epochs=100, precision="fp16"),
    )


def sparse4dv3_r50_256x704_bs88() -> FitConfig:
    """SparseEnd2End's: 88 samples per step, 150 epochs, images shrunk without anti-aliasing."""
    return FitConfig(
        name="sparse4dv3_r50_256x704_bs88",
        model=ModelSettings(name="sparse4dv3_r50"),
        data=DataConfig(image_size=(256, 704), resize_filter="cv2_linear"),
        optimiser=OptimiserSettings(lr=6e-4, reference_batch=88),
        run=RunSettings(batch=22, epochs=150, precision="fp16", workers=11),
    )


def sparse4dv3_r50_overfit() -> FitConfig:
    """ResNet-50 from random weights on one keyframe, without augmentation: a whole-system check.

    One sample per step: the running statistics of batch norm become those of the frame. Dropout and
    augmentation are off.
    """
    return FitConfig(
        name="sparse4dv3_r50_overfit",
        split="mini_train",
        model=ModelSettings(name="sparse4dv3_r50", dropout=0.0),
        data=DataConfig(
            image_size=(256, 704),
            augment=NO_AUGMENT,
            skip_probability=0.0,
            reverse_probability=0.0,
            sequence_parts=1,
        ),
        optimiser=OptimiserSettings(
            lr=4e-4, reference_batch=1, backbone_multiplier=1.0, warmup_steps=100, clip=25.0
        ),
        run=RunSettings(
            batch=1, steps=3000, precision="bf16", workers=2, log_every=50, save_every=500
        ),
    )


def sparse4dv3_tiny() -> FitConfig:
    """The tiny model on the synthetic world of `s4d-train synth`, from random weights.

    Whole scenes with few frames left out, and an assignment that keeps carried instances with
    their objects: in a training this short, tracks and velocities are not learned otherwise.
    """
    return FitConfig(
        name="sparse4dv3_tiny",
        split="mini_train",
        model=ModelSettings(name="sparse4dv3_tiny"),
        data=DataConfig(
            image_size=(128, 352),
            sequence_parts=1,
            skip_probability=0.1,
            reverse_probability=0.0,
            augment=AugmentConfig(rotate_degrees=(0.0, 0.0), grid_mask_probability=0.3),
        ),
        loss=LossConfig(cost=CostWeights(continuity=2.0), box_score_threshold=0.02),
        optimiser=OptimiserSettings(
            lr=1e-3, reference_batch=16, backbone_multiplier=1.0, warmup_steps=300, ema=0.999
        ),
        run=RunSettings(
            batch=16,
            steps=6000,
            precision="bf16",
            workers=14,
            save_every=2000,
            cuda_graphs=True,
        ),
    )


def sparse4dv3_tiny_smoke() -> FitConfig:
    """A few steps of the tiny model at 64 x 176: does everything fit together on this machine?"""
    return FitConfig(
        name="sparse4dv3_tiny_smoke",
        split="mini_train",
        model=ModelSettings(name="sparse4dv3_tiny"),
        data=DataConfig(image_size=(64, 176)),
        loss=LossConfig(),
        optimiser=OptimiserSettings(lr=1e-3, reference_batch=2, warmup_steps=4),
        run=RunSettings(batch=2, steps=8, precision="fp32", workers=0, log_every=1, save_every=4),
    )


RECIPES: dict[str, Callable[[], FitConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        sparse4dv3_r50_256x704,
        sparse4dv3_r50_256x704_bs88,
        sparse4dv3_r50_overfit,
        sparse4dv3_tiny,
        sparse4dv3_tiny_smoke,
        *FAMILY,
    )
}


def list_recipes() -> list[str]:
    """Names that `get_recipe` and `s4d-train fit` know."""
    return list(RECIPES)


def get_recipe(name: str) -> FitConfig:
    """The named settings, or a `ConfigError` with the nearest name."""
    if name not in RECIPES:
        raise ConfigError(f"there is no config '{name}'; {nearest(name, list(RECIPES))}")
    return RECIPES[name]()
