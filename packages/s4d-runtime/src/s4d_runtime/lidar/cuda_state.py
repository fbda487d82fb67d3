"""The words of an encoder's state, which stay on the device until asked for.

Counters of errors, values that are not finite (these are cleared for each frame), rows given, then
rows of each level (0 after an overflow), then rows that each level needed. All are 32-bit.
"""

from __future__ import annotations

from s4d_ops import sparse_cuda

__all__ = ["BAD_VALUES", "COUNTS", "GIVEN"]

BAD_VALUES = sparse_cuda.ERROR_SLOTS
GIVEN, COUNTS = BAD_VALUES + 1, BAD_VALUES + 2
