"""The sparse engine: voxels or points in, a bird's-eye tensor out. Without torch or TensorRT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendUnavailableError, FrameError
from .artifact import load_graph
from .cpu_encoder import CpuEncoder
from .errors import LidarGraphError
from .nodes import LidarGraph, ScatterNode
from .plan import Plan
from .rows import host_array
from .voxels import VoxelRules

if TYPE_CHECKING:
    from .cuda_encoder import CudaEncoder

__all__ = ["SparseEngine"]

PRECISIONS = ("auto", "fp32", "fp16", "int8")
VOXEL_RULES_KEY = "s4d.voxel_rules"


class SparseEngine:
    """A loaded LiDAR encoder. Make one with :meth:`load`.

    The same input gives the same bits in every run, on the CPU for any number of threads. There is
    no limit on the number of voxels but memory.

    Attributes:
        graph: what was loaded.
        precision: "fp32", "fp16" or "int8". All accumulate in float32 (int8: exactly, in int32);
            fp16 stores features as half; int8 stores codes where the file says so, and float32
            between layers that stay half.
        device: "cpu" or "cuda".
        voxel_rules: what :meth:`from_points` uses.
        cuda: on CUDA, the encoder with its own methods (streams, reserving memory), else None.
    """

    def __init__(
        self,
        graph: LidarGraph,
        precision: str = "auto",
        voxel_rules: VoxelRules | None = None,
        threads: int = 0,
        device: str = "cpu",
        max_voxels: int = 0,
    ) -> None:
        if precision not in PRECISIONS:
            raise LidarGraphError(f"expected precision {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "auto":
            precision = "int8" if graph.quantised else "fp16"
        self.graph = graph
        self.precision = precision
        self.voxel_rules = voxel_rules or _voxel_rules(graph)
        self.cuda: CudaEncoder | None = None
        self._encoder: CpuEncoder | CudaEncoder
        self.device = _choose(device)
        if self.device == "cuda":
            from .cuda_encoder import CudaEncoder

            self._encoder = self.cuda = CudaEncoder(graph, precision, max_voxels)
        else:
            self._encoder = CpuEncoder(graph, precision, threads)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        precision: str = "auto",
        device: str = "auto",
        voxel_rules: VoxelRules | None = None,
        threads: int = 0,
        max_voxels: int = 0,
    ) -> SparseEngine:
        """Load ``NAME.s4d`` or an ONNX file in libspconv's schema.

        Args:
            precision: "auto" takes int8 for a calibrated file, else fp16.
            device: "cpu", "cuda", or "auto": CUDA where there are a device and its library.
            voxel_rules: default: what the file says, else CenterPoint's in the file's axis order.
            threads: CPU: 0 takes ``S4D_NUM_THREADS``, else the cores this process may use.
            max_voxels: CUDA: reserve memory for this many at once; 0 reserves for what comes and
                grows.

        Raises:
            ArtifactError, OnnxFileError, LidarGraphError: the file, and why it cannot be used.
            BackendUnavailableError: "cuda" without a device or without its library.
        """
        return cls(load_graph(path), precision, voxel_rules, threads, device, max_voxels)

    @property
    def plan(self) -> Plan:
        """The steps that run, and how each tensor is stored."""
        return self._encoder.plan

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._encoder.weight_bytes

    def __call__(
        self,
        features: Any,
        indices: Any,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> Any:
        """Encode voxels.

        Args:
            features: (V, C) float16 or float32 (on the CPU also float64): numpy, or any DLPack
                tensor on the CPU; with device "cuda" also on that device, read in place.
            indices: (V, 4) int32, ``batch`` and the grid's axes; no row twice, none outside.
            grid_shape: the grid, in the index order; default: the file's.

        Returns:
            (B, C * D, H, W), float16 (float32 for fp32). numpy for CPU tensors; a
            :class:`DeviceTensor` for tensors on the device. Both speak DLPack.

        Raises:
            FrameError: shapes, NaN, or rows that do not fit; the engine stays usable.
        """
        return self._encoder.run(features, indices, self._grid(grid_shape), batch_size)

    def from_points(self, points: Any) -> Any:
        """Voxelise one cloud (P, C), or a list of clouds as a batch, and encode it.

        On CUDA both happen on the device, and the host waits once. Returns what ``__call__``
        does.
        """
        if self.cuda is not None:
            return self.cuda.run_points(_clouds(points), self.voxel_rules)
        features, indices, batch_size = self.voxelize(points)
        return self(features, indices, None, batch_size)

    def voxelize(self, points: Any) -> tuple[Any, Any, int]:
        """Features (V, C) float32, indices (V, 4) int32 and batch size of one cloud or a list of
        clouds: numpy, on CUDA a ``DeviceTensor`` each."""
        clouds = _clouds(points)
        if self.cuda is not None:
            return self.cuda.voxelize(clouds, self.voxel_rules)
        voxels = [self.voxel_rules.voxelize(host_array(cloud, "points")) for cloud in clouds]
        order = self.voxel_rules.index_order
        rows = [v.indices(order, batch) for batch, v in enumerate(voxels)]
        return np.concatenate([v.features for v in voxels]), np.concatenate(rows), len(clouds)

    def trace(
        self,
        features: Any,
        indices: Any,
        grid_shape: Sequence[int] | None = None,
        batch_size: int = 1,
        fused: bool = False,
    ) -> dict[str, Any]:
        """Every tensor of the graph by name: ``SparseRows`` or dense arrays, on the host.

        For comparisons layer by layer; slower, and nothing is freed.

        Args:
            fused: the tensors of the plan as it runs, instead of the graph's, without fusion.
        """
        return self._encoder.trace(features, indices, self._grid(grid_shape), batch_size, fused)

    def _grid(self, grid_shape: Sequence[int] | None) -> tuple[int, int, int]:
        shape = tuple(int(n) for n in (self.graph.grid_shape if grid_shape is None else grid_shape))
        if len(shape) != 3:
            raise FrameError(f"expected a grid shape of three sizes, got {shape}")
        return shape[0], shape[1], shape[2]


def _voxel_rules(graph: LidarGraph) -> VoxelRules:
    """Those of the file; else CenterPoint's, in the file's order of axes."""
    text = graph.metadata.get(VOXEL_RULES_KEY)
    if text:
        return VoxelRules.from_json(text)
    formats = [node.format for node in graph.nodes if isinstance(node, ScatterNode)]
    return VoxelRules(index_order="xyz" if formats[:1] == ["xyz"] else "zyx")


def _clouds(points: Any) -> list[Any]:
    clouds = list(points) if isinstance(points, (list, tuple)) else [points]
    if not clouds:
        raise FrameError("expected at least one point cloud, got none")
    return clouds


def _choose(device: str) -> str:
    """ "cpu" or "cuda".

    Raises:
        BackendUnavailableError: an unknown device, or "cuda" where it cannot be.
    """
    if device == "cpu":
        return "cpu"
    if device not in ("auto", "cuda"):
        raise BackendUnavailableError(f'expected device "auto", "cpu" or "cuda", got {device!r}')
    from .cuda_encoder import cuda_problem

    problem = cuda_problem()
    if problem is None:
        return "cuda"
    if device == "cuda":
        raise BackendUnavailableError(f"the sparse engine cannot use CUDA: {problem}")
    return "cpu"
