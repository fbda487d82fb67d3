"""From the graph's 32-bit track ids to ids that stay unique for the life of a pipeline.

The graph hands out several thousand ids a second, so its counter would overflow after days.
Here ids are 64-bit. When the counter comes near the limit, the live ids are renumbered from zero
inside the state, and this table remembers what they were; nothing changes for the user.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RENUMBER_ABOVE", "TrackIds"]

RENUMBER_ABOVE = 1 << 30


class TrackIds:
    """A graph id below ``len(known)`` means ``known[id]``; any other means ``id + base``."""

    def __init__(self) -> None:
        self._known: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._base = 0

    def translate(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """User's ids, int64, of graph ids; negative ones (no id) become -1."""
        wide = ids.astype(np.int64)
        result = np.where(wide < 0, -1, wide + self._base)
        if len(self._known):
            low = (wide >= 0) & (wide < len(self._known))
            result[low] = self._known[wide[low]]
        return result

    def restart_graph(self, counter: int) -> None:
        """The graph starts again from id 0; ids up to its last ``counter`` are used up."""
        self._base += counter
        self._known = np.empty(0, dtype=np.int64)

    def renumber(self, ids: NDArray[Any], counter: int) -> tuple[NDArray[Any], int]:
        """New graph ids for the live ``ids`` and a new counter; the user's ids stay the same."""
        live = np.unique(ids[ids >= 0])
        known = self.translate(live)
        renumbered = np.where(ids < 0, ids, np.searchsorted(live, ids)).astype(ids.dtype)
        self._base = counter + self._base - len(live)
        self._known = known
        return renumbered, len(live)
