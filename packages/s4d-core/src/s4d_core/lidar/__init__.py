"""The LiDAR branch in torch: sparse tensors, sparse convolutions, voxels, encoders.

::

    voxels = Voxelizer()([points])                      # points (P, 5): x y z intensity dt
    encoder = build_encoder("nusc_centerpoint_voxelnet_0075voxel")
    bev = encoder(voxels.features, voxels.indices, voxels.batch_size)   # (B, 256, 180, 180)
"""

from .checkpoint import (
    convert_encoder_checkpoint,
    load_encoder,
    read_encoder_checkpoint,
    save_encoder,
)
from .config import SparseEncoderConfig, encoder_config, list_encoders
from .conv import InverseConv3d, SparseConv3d, SubmanifoldConv3d
from .convert import convert_encoder_state
from .encoder import SparseEncoder, build_encoder
from .fold import fold_batchnorm
from .tensor import SparseTensor
from .voxelizer import VoxelBatch, Voxelizer, VoxelizerConfig

__all__ = [
    # data
    "SparseTensor",
    "VoxelBatch",
    "Voxelizer",
    "VoxelizerConfig",
    # layers
    "InverseConv3d",
    "SparseConv3d",
    "SubmanifoldConv3d",
    # encoders
    "SparseEncoder",
    "SparseEncoderConfig",
    "build_encoder",
    "encoder_config",
    "list_encoders",
    "fold_batchnorm",
    # checkpoints
    "convert_encoder_checkpoint",
    "convert_encoder_state",
    "load_encoder",
    "read_encoder_checkpoint",
    "save_encoder",
]
