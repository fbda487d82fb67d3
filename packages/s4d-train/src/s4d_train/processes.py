"""Work spread over fresh processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from .errors import TrainError

__all__ = ["in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], count: int
) -> Iterator[Result]:
    """`work` of every task in `count` processes, in the order of their ends; 1: in this one.

    Raises:
        TrainError: a process was killed, or could not start.
    """
    if count <= 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        signal.signal,  # Ctrl-C ends them at once and without a word
        (signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for job in as_completed([pool.submit(work, task) for task in tasks]):
            yield job.result()
    except BrokenProcessPool:
        raise TrainError(
            "a worker process ended before its work was done; a script needs "
            "if __name__ == '__main__': around the call, and with little memory workers=1 helps."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
