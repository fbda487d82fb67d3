"""Where a nuScenes data set keeps its tables."""

from __future__ import annotations

from pathlib import Path

from s4d_train.errors import MissingTableError

__all__ = ["find_version"]


def find_version(root: str | Path) -> str:
    """The only version folder (``v1.0-...``) in ``root``; MissingTableError when not one."""
    folders = sorted(p.parent.name for p in Path(root).glob("*/sample_data.json"))
    if len(folders) != 1:
        found = ", ".join(folders) if folders else "none"
        raise MissingTableError(
            f"expected one folder of tables in {root}, found {found}; give --version"
        )
    return folders[0]
