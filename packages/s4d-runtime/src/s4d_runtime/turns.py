"""Whose turn it is to use an engine: one thread at a time, in one process, until it is closed."""

from __future__ import annotations

import os
import threading

from .errors import BackendError

__all__ = ["Turns"]


class Turns:
    """A lock that also refuses what an engine cannot survive.

    A forked process has the engine's memory without its threads, and without its device: a frame
    there would hang or fail somewhere inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False

    def check(self) -> None:
        """Without waiting for a turn.

        Raises:
            BackendError: closed, or this process was forked from the one that loaded the engine.
        """
        if self._closed:
            raise BackendError("this pipeline is closed; load the artifact again")
        if os.getpid() != self._process:
            raise BackendError(
                f"this pipeline was loaded in process {self._process} and cannot be used in a fork "
                "of it; load the artifact in each process, or start processes with 'spawn'"
            )

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def end(self) -> bool:
        """Wait for the running frame; False where there is nothing (more) to close."""
        if self._closed or os.getpid() != self._process:
            return False
        with self._lock:
            self._closed, first = True, not self._closed
        return first
