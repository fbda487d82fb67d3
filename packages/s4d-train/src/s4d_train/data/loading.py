"""Batches from worker processes, with errors that read as they were raised."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import DataError
from .batch import Batch

__all__ = ["plain_errors"]


def plain_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; a `DataError` of a worker comes without the worker's traceback.

    torch hands such an error on with the traceback as its message, whose last line is
    `module.Class: message`.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except DataError as error:
            lines = str(error).rstrip().splitlines()
            if len(lines) > 1 and lines[0].startswith("Caught "):
                raise type(error)(lines[-1].partition(": ")[2]) from None
            raise
        yield batch
