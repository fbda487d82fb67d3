"""Device memory shared by tensors that are not needed at the same time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Buffer", "assign_offsets"]

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
    total = 0
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first, b.name)):
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
            at = max(at, -(-(other.offset + max(other.size, 1)) // ALIGNMENT) * ALIGNMENT)
        buffer.offset = at
        placed.append(buffer)
        total = max(total, at + size)
    return total
