"""Encoders with the golden weights."""

from __future__ import annotations

import torch
from golden_lidar import golden_rules

from s4d_core.lidar import SparseEncoder, SparseEncoderConfig, build_encoder, convert_encoder_state

SMALL = SparseEncoderConfig(
    "small", widths=(4, 8, 16, 32), out_channels=32, grid_shape=(41, 90, 101)
)


def foreign_state(config: SparseEncoderConfig) -> dict[str, torch.Tensor]:
    """The golden weights as a CenterPoint state dict (spconv 2 layout)."""
    weights = golden_rules().state_dict(config.widths, config.in_channels)
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def golden_encoder(config: SparseEncoderConfig, dtype: torch.dtype) -> SparseEncoder:
    encoder = build_encoder(config)
    encoder.load_state_dict(convert_encoder_state(foreign_state(config), config))
    return encoder.eval().to(dtype)
