"""Sparse convolution on a CUDA device without a framework: programs of kernel launches.

A ``Program`` (``program()``) is a list of calls with their device addresses. It is built once and
run as often as wanted on any stream; nothing in it allocates or waits, so it can be captured into a
CUDA graph. Calls between ``fork()`` and ``back()`` go to a second stream; ``join()`` waits for it.
The memory belongs to the caller. ``s4d_runtime.lidar`` builds its CUDA engine on it;
``csrc/core/sparse_conv/sparse_cuda.h`` says what each call does.

Types are named ``float32``, ``float16`` and ``int8``. Feature matrices are
``(address, type, range)``, rows ``padded_channels(type, channels)`` apart; ``range`` is the amax of
int8 codes. Address 0 stands for "none".
"""

from __future__ import annotations

from typing import Any

from ._native_module import cuda_native as native

__all__ = ["ERROR_SLOTS", "ENTRIES_OUTSIDE", "ENTRIES_TWICE", "ROWS_LOST", "ROWS_OUTSIDE",
           "ROWS_TWICE", "native", "program"]  # fmt: skip

# Counters that the calls raise in their `errors` array, int32.
ERROR_SLOTS = 8
ROWS_OUTSIDE, ROWS_TWICE, ROWS_LOST, ENTRIES_OUTSIDE, ENTRIES_TWICE = range(5)


def program() -> Any:
    """An empty program.

    Raises:
        MissingLibraryError: as :func:`native`.
    """
    return native().Program()
