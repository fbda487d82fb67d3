"""Rows of a table by their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from s4d_train.errors import DataError

__all__ = ["Lookup", "texts"]

Array = npt.NDArray[Any]


def texts(column: Array) -> list[str]:
    """A column of bytes as strings."""
    return [value.decode() for value in column]


class Lookup:
    """Row numbers of tokens."""

    def __init__(self, tokens: Array) -> None:
        self.order = np.argsort(tokens)
        self.sorted = tokens[self.order]

    def find(self, tokens: Array) -> npt.NDArray[np.int64]:
        """(n,) rows, -1 for tokens that are not there."""
        if not len(self.sorted):
            return np.full(len(tokens), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.sorted, tokens), len(self.sorted) - 1)
        return np.where(self.sorted[at] == tokens, self.order[at], -1)

    def rows(self, tokens: Array, what: str) -> npt.NDArray[np.int64]:
        """(n,) rows; DataError when a token is not there."""
        found = self.find(tokens)
        if (found < 0).any():
            token = tokens[int(np.argmax(found < 0))].decode()
            raise DataError(f"the tables name the {what} {token}, which no row has")
        return found
