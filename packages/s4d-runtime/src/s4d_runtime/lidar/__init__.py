"""The LiDAR encoder on board: voxels or points in, a bird's-eye tensor out. Torch-free.

::

    engine = SparseEngine.load("centerpoint.onnx", precision="fp16")
    bev = engine.from_points(points)                      # (1, 256, 180, 180)
"""

from .artifact import LidarManifest, read_lidar_artifact, write_lidar_artifact
from .compare import Comparison, compare
from .device_tensor import DeviceTensor
from .engine import SparseEngine
from .errors import LidarGraphError, OnnxFileError, TensorFileError
from .rows import SparseRows
from .tensor_file import read_tensor, write_tensor
from .voxels import VoxelRules

__all__ = [
    "DeviceTensor",
    "SparseEngine",
    "SparseRows",
    "VoxelRules",
    # files
    "LidarManifest",
    "read_lidar_artifact",
    "read_tensor",
    "write_lidar_artifact",
    "write_tensor",
    # comparison
    "Comparison",
    "compare",
    # errors
    "LidarGraphError",
    "OnnxFileError",
    "TensorFileError",
]
