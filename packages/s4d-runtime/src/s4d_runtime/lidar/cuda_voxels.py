"""Voxelisation on the device: the rule of ``VoxelRules``, clouds of a batch one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s4d_ops import sparse_cuda

from ..cuda.driver import Stream
from ..errors import FrameError
from .cuda_memory import DeviceMemory, Results, download
from .device_tensor import DeviceTensor, DeviceView
from .voxels import VoxelRules

__all__ = ["CudaVoxelizer"]

_GROWTH = 1.25
# Words of the state: errors, rows so far, then per cloud its points and three statistics.
_ROWS, _CLOUDS = sparse_cuda.ERROR_SLOTS, sparse_cuda.ERROR_SLOTS + 4


class CudaVoxelizer:
    """Keeps the memory of its results and its workspace; both grow to what is needed.

    Attributes:
        count: address of the number of voxels, on the device.
    """

    def __init__(self) -> None:
        self._native = sparse_cuda.native()
        self._room = 0
        self._memory: dict[str, DeviceMemory] = {}
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(memory.size for memory in self._memory.values())

    def enqueue(
        self, clouds: Sequence[DeviceView], rules: VoxelRules, stream: Stream
    ) -> tuple[DeviceView, DeviceView]:
        """Put the work on a stream; returns means (room, C) float32 and index rows (room, 4), of
        which ``count`` says how many there are.

        Raises:
            FrameError: shapes, types, or sizes that the kernels do not take.
        """
        channels = clouds[0].shape[1] if len(clouds[0].shape) == 2 else 0
        for cloud in clouds:
            if cloud.shape[1:] != (channels,) or not 3 <= channels <= 16:
                raise FrameError(
                    f"expected points (P, C) with 3 to 16 values each, got {cloud.shape}"
                )
            if cloud.dtype not in ("float32", "float16"):
                raise FrameError(f"expected float32 or float16 points, got {cloud.dtype}")
        points = [cloud.shape[0] for cloud in clouds]
        if not self._room:
            self._room = sum(points) // 2 + 128
        limits = [list(rules.low), list(rules.high), list(rules.size)]
        sizes = (list(rules.grid_shape_xyz), rules.max_points, rules.max_voxels)
        workspace = max(self._native.voxelize_bytes(limits, *sizes, count) for count in points)
        if workspace == 0:
            raise FrameError(
                "on CUDA, expected voxel rules with max_points of at most 64 and a grid of at most "
                "2^37 cells"
            )
        state = self._reserve("state", 4 * (_CLOUDS + 4 * len(clouds)), stream)
        rows = self._reserve("indices", 16 * self._room, stream)
        means = self._reserve("means", 4 * channels * self._room, stream)
        work = self._reserve("workspace", workspace, stream)
        program = self._native.Program()
        program.clear(state, 4 * (_CLOUDS + 4 * len(clouds)))
        self.count = state + 4 * _ROWS
        for sample, cloud in enumerate(clouds):
            words = state + 4 * (_CLOUDS + 4 * sample)
            program.store(words, points[sample])
            program.voxelize(
                (cloud.address, cloud.dtype), words, points[sample], channels, limits, *sizes,
                sample, rules.index_order == "zyx", self.count, self._room, rows, means, self.count,
                words + 4, work, state,
            )  # fmt: skip
        program.run(stream.handle)
        return (
            DeviceView(means, (self._room, channels), "float32", self),
            DeviceView(rows, (self._room, 4), "int32", self),
        )

    def settle(self, stream: Stream) -> bool:
        """Wait; False where the voxels had too little room, which they have now."""
        state = download(stream, self._memory["state"].address, (_CLOUDS,), np.int32)
        if not state[sparse_cuda.ROWS_LOST]:
            return True
        self._room = int(_GROWTH * state[_ROWS]) + 128
        return False

    def run(
        self,
        clouds: Sequence[DeviceView],
        rules: VoxelRules,
        results: Results,
        stream: Stream,
    ) -> tuple[DeviceTensor, DeviceTensor]:
        """Voxelise and wait: features (V, C) float32 and index rows (V, 4)."""
        while True:
            means, rows = self.enqueue(clouds, rules, stream)
            if self.settle(stream):
                break
        count = int(download(stream, self.count, (1,), np.int32)[0])
        outputs = []
        for view in (means, rows):
            tensor = results.lend((count, view.shape[1]), view.dtype, stream)
            if tensor.nbytes:
                stream.copy(tensor.address, view.address, tensor.nbytes)
            tensor.written(stream)
            outputs.append(tensor)
        return outputs[0], outputs[1]

    def _reserve(self, name: str, size: int, stream: Stream) -> int:
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            stream.synchronize()
            memory = self._memory[name] = DeviceMemory(size)
        return memory.address
