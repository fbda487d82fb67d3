"""Device memory shared by tensors that are not needed at the same time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Buffer", "assign_offsets", "assign_within"]

ALIGNMENT = 256


@dataclass(eq=False)
class Buffer:
    """A block of memory that is used from call number ``first`` to call number ``last``."""

    name: str
    size: int
    first: int = -1
    last: int = -1
    offset: int = -1

    def used_by(self, call: int) -> None:
        """Note that a call reads or writes it."""
        if self.first < 0:
            self.first = call
        self.last = max(self.last, call)


def assign_offsets(buffers: list[Buffer], share: bool = True) -> int:
    """Give every buffer its place; returns the size of the whole.

    Largest first, each at the lowest place where no buffer that lives at the same time lies. With
    ``share`` False all lie side by side.
    """
    placed: list[Buffer] = []
    for buffer in _largest_first(buffers):
        buffer.offset = _lowest_place(buffer, placed, share)
        placed.append(buffer)
    return max((_end(buffer) for buffer in buffers), default=0)


def assign_within(buffers: list[Buffer], limit: int) -> list[Buffer]:
    """Place as many buffers as ``limit`` bytes take, those that live at one time apart; returns the
    others."""
    placed: list[Buffer] = []
    others: list[Buffer] = []
    for buffer in _largest_first(buffers):
        buffer.offset = _lowest_place(buffer, placed, True)
        (placed if _end(buffer) <= limit else others).append(buffer)
    return others


def _largest_first(buffers: list[Buffer]) -> list[Buffer]:
    return sorted(buffers, key=lambda b: (-b.size, b.first, b.name))


def _end(buffer: Buffer) -> int:
    """The next aligned place behind a buffer."""
    return buffer.offset + -(-max(buffer.size, 1) // ALIGNMENT) * ALIGNMENT


def _lowest_place(buffer: Buffer, placed: list[Buffer], share: bool) -> int:
    size = -(-max(buffer.size, 1) // ALIGNMENT) * ALIGNMENT
    at = 0
    neighbours = [
        other
        for other in placed
        if not share or (other.first <= buffer.last and buffer.first <= other.last)
    ]
    for other in sorted(neighbours, key=lambda b: b.offset):
        if at + size <= other.offset:
            break
        at = max(at, _end(other))
    return at
