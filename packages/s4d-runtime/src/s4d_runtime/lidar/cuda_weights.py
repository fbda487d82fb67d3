"""Weights of a plan, packed and uploaded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops import sparse_cuda

from ..cuda.driver import Stream
from .cuda_memory import DeviceMemory
from .nodes import LidarGraph
from .plan import AddStep, ConvStep, Plan, weight_codes

__all__ = ["DeviceWeights", "PackedConvolution"]


@dataclass(frozen=True)
class PackedConvolution:
    """Addresses of one convolution's weight, scale (int8, else 0) and bias, and its sizes.

    ``split``: a half convolution of rows stored as float32. It reads them as two halves side by
    side, with its weights twice over: ``in_channels`` is twice that of the layer.
    """

    dtype: str
    in_channels: int
    out_channels: int
    weight: int
    scale: int
    bias: int
    split: bool = False


class DeviceWeights:
    """All convolutions of a plan. ``channels`` has those of every sparse tensor."""

    def __init__(self, graph: LidarGraph, plan: Plan, precision: str, stream: Stream) -> None:
        self._native = sparse_cuda.native()
        self._memory: list[DeviceMemory] = []
        self._convolutions: dict[str, PackedConvolution] = {}
        self.channels = {graph.source: graph.in_channels}
        for step in plan.steps:
            if isinstance(step, ConvStep):
                self.channels[step.target] = step.node.weight.shape[0]
                self._convolutions[step.node.target] = self._pack(step, plan, precision, stream)
            elif isinstance(step, AddStep):
                self.channels[step.target] = self.channels[step.left]

    def of(self, step: ConvStep) -> PackedConvolution:
        """The packed weights of a step."""
        return self._convolutions[step.node.target]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(memory.size for memory in self._memory)

    def _pack(
        self, step: ConvStep, plan: Plan, precision: str, stream: Stream
    ) -> PackedConvolution:
        node = step.node
        out, *kernel, depth = node.weight.shape
        volume = int(np.prod(kernel))
        dtype = "int8" if step.quantised else "float32" if precision == "fp32" else "float16"
        scale = 0
        weight: NDArray[Any] = node.weight
        if step.quantised:
            weight, ranges = weight_codes(node)
            stored = plan.storage[node.source]
            amax = stored.range if stored.dtype == "int8" else node.input_range
            scales = (ranges.astype(np.float32).astype(np.float64) / 127.0) * (
                float(np.float32(amax)) / 127.0
            )
            scale = self._upload(scales.astype(np.float32), stream)
        elif weight.dtype != np.float16 or dtype == "float32":
            weight = weight.astype(np.float32)
        split = dtype == "float16" and plan.storage[node.source].dtype == "float32"
        if split:
            weight, depth = np.concatenate([weight, weight], -1), 2 * depth
        raw = self._stage(np.ascontiguousarray(weight.reshape(out, volume, depth)), stream)
        packed = DeviceMemory(self._native.packed_weight_bytes(dtype, volume, depth, out))
        self._native.pack_weights(
            dtype, raw.address, weight.dtype.name, volume, depth, out, packed.address,
            stream.handle,
        )  # fmt: skip
        stream.synchronize()
        raw.close()
        self._memory.append(packed)
        bias = self._upload(node.bias.astype(np.float32), stream)
        return PackedConvolution(dtype, depth, out, packed.address, scale, bias, split)

    def _stage(self, array: NDArray[Any], stream: Stream) -> DeviceMemory:
        memory = DeviceMemory(array.nbytes)
        stream.upload(memory.address, array.ctypes.data, array.nbytes)
        stream.synchronize()
        return memory

    def _upload(self, array: NDArray[Any], stream: Stream) -> int:
        self._memory.append(self._stage(np.ascontiguousarray(array), stream))
        return self._memory[-1].address
