"""Text files of results, written beside and renamed."""

from __future__ import annotations

import os

from s4d_runtime.files import write_bytes

from .artifact import check_destination
from .errors import UnwritableOutputError

__all__ = ["write_text"]


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
