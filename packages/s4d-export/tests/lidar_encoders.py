"""Small sparse encoders and frames for the tests of LiDAR export."""

import dataclasses

import numpy as np
import torch

from s4d_core.lidar import SparseEncoderConfig, build_encoder, fold_batchnorm
from s4d_export.lidar import CalibrationFrame

HELD = SparseEncoderConfig("held", widths=(4, 8, 16, 32), out_channels=32, grid_shape=(41, 72, 56))
TINY = SparseEncoderConfig(
    "tiny", 5, (8, 16), 1, 16, (11, 24, 20), "zyx", ((1, 1, 1),), block_bias=True
)
XYZ = dataclasses.replace(TINY, name="xyz", grid_shape=(20, 24, 11), index_order="xyz")


def frame(config, seed=0, count=400, batch=1):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(batch * int(np.prod(config.grid_shape)))[:count]
    rows = np.stack(np.unravel_index(keys, (batch, *config.grid_shape)), 1).astype(np.int32)
    features = rng.standard_normal((count, 5)).astype(np.float16)
    return CalibrationFrame(features, rows, batch)


def trained(config, seed=0):
    """An encoder with running statistics that are not the initial ones, folded."""
    torch.manual_seed(seed)
    encoder = build_encoder(config)
    for index in range(3):
        data = frame(config, 100 + index, 600, 2)
        encoder(torch.from_numpy(data.features).float(), torch.from_numpy(data.indices), 2)
    return fold_batchnorm(encoder)
