"""Access to the golden LiDAR data and its numpy-only rules."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from s4d_core.lidar import SparseEncoder, SparseEncoderConfig, build_encoder, convert_encoder_state

SHARED = Path(os.environ.get("S4D_SHARED", Path(__file__).parents[3].parent / "shared"))
GOLDEN = SHARED / "golden" / "lidar"
SMALL = SparseEncoderConfig(
    "small", widths=(4, 8, 16, 32), out_channels=32, grid_shape=(41, 90, 101)
)


def golden(name: str):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no golden data: {name} is not under S4D_SHARED")
    return np.load(path)


def golden_rules():
    path = GOLDEN / "rules.py"
    if not path.exists():
        pytest.skip("no golden data: rules.py is not under S4D_SHARED")
    spec = importlib.util.spec_from_file_location("golden_rules", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foreign_state(config: SparseEncoderConfig) -> dict[str, torch.Tensor]:
    """The golden weights as a CenterPoint state dict (spconv 2 layout)."""
    weights = golden_rules().state_dict(config.widths, config.in_channels)
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def golden_encoder(config: SparseEncoderConfig, dtype: torch.dtype) -> SparseEncoder:
    encoder = build_encoder(config)
    encoder.load_state_dict(convert_encoder_state(foreign_state(config), config))
    return encoder.eval().to(dtype)
