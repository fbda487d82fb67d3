"""Every tensor of a run on the device, for comparisons layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cuda.driver import Stream
from .cuda_memory import download
from .cuda_program import Inputs
from .cuda_reserve import Reservation
from .cuda_state import COUNTS
from .cuda_weights import DeviceWeights
from .device_tensor import DeviceView
from .nodes import Triple
from .plan import Plan
from .rows import SparseRows

__all__ = ["trace"]


def trace(
    reservation: Reservation,
    plan: Plan,
    weights: DeviceWeights,
    features: DeviceView,
    indices: DeviceView,
    grid: Triple,
    batch_size: int,
    stream: Stream,
) -> dict[str, SparseRows]:
    """The plan's sparse tensors on the host. The frame must have run before, so that rows enough
    are reserved and its data are known to be good."""
    program = reservation.program(plan, weights, grid, batch_size, keep=True)
    bound = reservation.bind_apart(program)
    reservation.give(features.shape[0], stream)
    given = Inputs(features.address, features.dtype, indices.address, features.shape[0])
    bound.launch(given, 0, 0, stream)
    levels = program.sites.levels
    counts = download(stream, program.places.state + 4 * COUNTS, (len(levels),), np.int32)
    rows = {
        lv.index: download(stream, program.places.rows_at(lv), (int(counts[lv.index]), 4), np.int32)
        for lv in levels
    }
    books: dict[int, dict[Any, Any]] = {}
    tensors = {}
    for name in program.places.tensors:
        level, storage = program.sites.of_tensor[name], plan.storage[name]
        address, _, stride = program.tensor_at(name)
        wide = download(stream, address, (int(counts[level.index]), stride), storage.dtype)
        values = np.ascontiguousarray(wide[:, : program.channels(name)])
        shared = books.setdefault(level.index, {})
        tensors[name] = SparseRows(values, rows[level.index], level.grid, storage, shared)
    stream.synchronize()
    bound.close()
    return tensors
