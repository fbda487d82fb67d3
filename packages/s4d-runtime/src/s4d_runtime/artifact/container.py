"""The zip layer of an artifact: plain, stored members under flat names, nothing else.

Python's ``zipfile`` parses the directory; this module then refuses everything that a plain archive
does not need, because each such feature has been used to make two readers see two different files.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
from typing import BinaryIO

from ..errors import ArtifactMemberError, ArtifactStructureError

__all__ = ["MAX_MEMBERS", "PARSE_ERRORS", "check_member_name", "open_container"]

MAX_MEMBERS = 64
# What zipfile raises on damaged directories, beside BadZipFile.
PARSE_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    OverflowError,
    OSError,
    RuntimeError,
    UnicodeError,
    IndexError,
)
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_member_name(name: str) -> None:
    """Members lie flat and have portable names: letters, digits, ``.``, ``_``, ``-``.

    Raises:
        ArtifactMemberError: the name has a path, a leading dot, or other characters.
    """
    good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None
    if not good or name.endswith(".") or _RESERVED.fullmatch(name):
        shown = repr(name) if len(name) <= 80 else repr(name[:77] + "...")
        raise ArtifactMemberError(
            f"expected flat member names of letters, digits, '.', '_' and '-', got {shown}"
        )


def open_container(file: BinaryIO) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open the archive and check its structure, not its contents.

    Returns:
        The open archive and its members by name.

    Raises:
        ArtifactStructureError: not a zip file, truncated, or with anything but plain stored,
            contiguous members.
        ArtifactMemberError: a forbidden or repeated name.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
        infos = archive.infolist()
    except PARSE_ERRORS as error:
        raise ArtifactStructureError(
            f"not a whole zip file ({size} bytes: {error}); the copy may be cut short"
        ) from None
    if len(infos) > MAX_MEMBERS:
        raise ArtifactStructureError(f"expected at most {MAX_MEMBERS} members, got {len(infos)}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        # orig_filename is what the file says; zipfile cuts filename at a NUL.
        check_member_name(info.orig_filename)
        if info.filename in members:
            raise ArtifactMemberError(f"member {info.filename!r} comes twice")
        members[info.filename] = info
    _check_plain(members, size)
    _check_layout(file, archive, members)
    return archive, members


def _check_plain(members: dict[str, zipfile.ZipInfo], size: int) -> None:
    for name, info in members.items():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ArtifactStructureError(f"member {name!r} is compressed; it must be stored")
        if info.flag_bits & ~_UTF8:
            what = "encrypted" if info.flag_bits & _ENCRYPTED else "not plain"
            raise ArtifactStructureError(
                f"member {name!r} is {what} (zip flags {info.flag_bits:#x}); it must be stored"
            )
        mode = stat.S_IFMT(info.external_attr >> 16)
        if mode not in (0, stat.S_IFREG):
            raise ArtifactStructureError(f"member {name!r} is not a regular file")
        if info.file_size > size:
            raise ArtifactStructureError(
                f"member {name!r} declares {info.file_size} bytes in a file of {size}"
            )


def _check_layout(
    file: BinaryIO, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]
) -> None:
    """Members follow each other from byte 0 to the directory, with no gap and no overlap."""
    position = 0
    for name, info in sorted(members.items(), key=lambda item: item[1].header_offset):
        if info.header_offset != position:
            raise ArtifactStructureError(
                f"member {name!r} starts at byte {info.header_offset}, expected {position}"
            )
        file.seek(position)
        raw = file.read(_LOCAL_HEADER.size)
        if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise ArtifactStructureError(f"member {name!r} has no header; the file is damaged")
        fields = _LOCAL_HEADER.unpack(raw)
        name_length, extra_length = fields[9], fields[10]
        if file.read(name_length) != info.orig_filename.encode():
            raise ArtifactStructureError(
                f"the header of member {name!r} names another one; the file is damaged"
            )
        position += _LOCAL_HEADER.size + name_length + extra_length + info.file_size
    if position != archive.start_dir:
        raise ArtifactStructureError(
            f"{archive.start_dir - position} bytes between the last member and the directory "
            "belong to no member"
        )
