"""Words for people: files of results, written beside and renamed, and notes while work goes on."""

from __future__ import annotations

import os
import sys

from s4d_runtime.files import write_bytes

from ..artifact import check_destination
from ..errors import UnwritableOutputError

__all__ = ["tell", "write_text"]


def tell(text: str) -> None:
    """What goes on, on standard error, where somebody watches."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole file or nothing.

    Raises:
        UnwritableOutputError: no such folder, no permission, no space.
    """
    target = check_destination(path)
    try:
        write_bytes(target, text.encode())
    except OSError as error:
        raise UnwritableOutputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; nothing was left behind"
        ) from None
