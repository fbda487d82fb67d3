"""Read nuScenes JSON tables: typed records, in pieces, keeping only what is asked for.

The largest tables of the full data set have over a gigabyte. They are flat arrays of objects, so
they are decoded piece by piece; a piece ends between two objects, and memory holds one piece and
the records that were kept.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import DatasetError
from ..geometry import Matrix, quaternion_to_matrix

__all__ = [
    "AnnotationRow",
    "CalibrationRow",
    "EgoPoseRow",
    "NamedRow",
    "InstanceRow",
    "SampleDataRow",
    "SampleRow",
    "SceneRow",
    "SensorRow",
    "read_table",
    "rotation",
]

PIECE = 16 << 20
_SPACE = b" \t\r\n"

Triple = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class SceneRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    name: str
    description: str = ""


class SampleRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    timestamp: int
    scene_token: str


class SampleDataRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    filename: str
    is_key_frame: bool


class EgoPoseRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    rotation: Quaternion
    translation: Triple


class CalibrationRow(msgspec.Struct, frozen=True):
    token: str
    sensor_token: str
    translation: Triple
    rotation: Quaternion
    camera_intrinsic: list[list[float]]


class SensorRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    channel: str
    modality: str


class InstanceRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    category_token: str


class NamedRow(msgspec.Struct, frozen=True, gc=False):
    """A category or an attribute."""

    token: str
    name: str


class AnnotationRow(msgspec.Struct, frozen=True, gc=False):
    token: str
    sample_token: str
    instance_token: str
    translation: Triple
    size: Triple
    rotation: Quaternion
    prev: str = ""
    next: str = ""
    num_lidar_pts: int = 0
    num_radar_pts: int = 0


Row = TypeVar("Row", bound=msgspec.Struct)


def read_table(path: Path, row: type[Row], keep: Callable[[Row], bool] | None = None) -> list[Row]:
    """Records of one table; those for which ``keep`` is false are dropped at once.

    Raises:
        DatasetError: the file is missing, is not JSON, or a record lacks a field.
    """
    decoder = msgspec.json.Decoder(list[row])  # type: ignore[valid-type]
    records: list[Row] = []
    try:
        for piece in _pieces(path, decoder):
            records.extend(piece if keep is None else filter(keep, piece))
    except OSError as error:
        raise DatasetError(f"cannot read {path.name} in {path.parent}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path.name} is not the nuScenes table expected: {error}") from None
    return records


def _pieces(path: Path, decoder: msgspec.json.Decoder[list[Row]]) -> Iterator[list[Row]]:
    if path.stat().st_size <= 2 * PIECE:
        yield decoder.decode(path.read_bytes())
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        start = data.find(b"[") + 1
        stop = data.rfind(b"]")
        while start < stop:
            rows, start = _next_piece(data, start, stop, decoder)
            yield rows


def _next_piece(
    data: mmap.mmap, start: int, stop: int, decoder: msgspec.json.Decoder[list[Row]]
) -> tuple[list[Row], int]:
    """Decode about ``PIECE`` bytes from ``start``; returns the records and where to go on.

    A ``}`` before a comma may also stand inside a string or end an inner object. Then the piece is
    not valid JSON, and the next candidate is tried.
    """
    search = start + PIECE
    failures = 0
    while True:
        end = data.find(b"}", search) + 1 if search < stop else 0
        if not 0 < end < stop:
            return decoder.decode(b"[" + data[start:stop] + b"]"), stop
        following = end
        while following < stop and data[following] in _SPACE:
            following += 1
        if following >= stop or data[following] == ord(","):
            try:
                return decoder.decode(b"[" + data[start:end] + b"]"), following + 1
            except msgspec.MsgspecError:
                failures += 1
                if failures > 16:  # not a border in a string: the table itself is wrong
                    raise
        search = end


def rotation(q: Sequence[float], token: str) -> Matrix:
    """(3, 3) of a record's quaternion.

    Raises:
        DatasetError: it is none; the record is named.
    """
    try:
        return quaternion_to_matrix(q)
    except ValueError as error:
        raise DatasetError(f"record {token!r}: {error}") from None
