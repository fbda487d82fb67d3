"""A model of a few thousand weights and settings that train it, for tests of the trainer."""

from __future__ import annotations

import json
from pathlib import Path

import s4d_core
from s4d_train.configs.config import FitConfig
from s4d_train.configs.recipes import get_recipe
from s4d_train.configs.settings import override


def micro_model() -> s4d_core.Sparse4DConfig:
    return s4d_core.Sparse4DConfig(
        name="micro",
        embed_dims=16,
        image=s4d_core.ImageConfig(size=(32, 64)),
        backbone=s4d_core.ResNetConfig(
            block="basic", layers=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_channels=8
        ),
        anchor_encoder=s4d_core.AnchorEncoderConfig(dims=(4, 4, 4, 4), blocks=1),
        decoder=s4d_core.DecoderConfig(num_layers=2, num_heads=2, ffn_channels=32),
        aggregation=s4d_core.AggregationConfig(num_groups=2, num_learned_points=1),
        num_anchors=24,
        num_temporal=12,
        num_output=12,
    )


def micro_config(folder: Path, index: Path, *pairs: str) -> FitConfig:
    """Settings of a short run; the model's file is written into `folder`."""
    file = folder / "micro.json"
    file.write_text(json.dumps(micro_model().to_dict()))
    return override(
        get_recipe("sparse4dv3_tiny_smoke"),
        [
            f"model.name={file}",
            "data.image_size=(32, 64)",
            f"data.index={index}",
            f"out={folder / 'run'}",
            "loss.denoising.groups=2",
            "loss.denoising.temporal_groups=1",
            *pairs,
        ],
    )
