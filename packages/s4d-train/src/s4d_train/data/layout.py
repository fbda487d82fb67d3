"""Where a nuScenes data set keeps its tables."""

from __future__ import annotations

from pathlib import Path

from s4d_train.errors import MissingTableError

__all__ = ["find_version", "find_versions"]


def find_versions(root: str | Path) -> list[str]:
    """The version folders (``v1.0-...``) in ``root``; MissingTableError when there is none."""
    folders = sorted(p.parent.name for p in Path(root).glob("*/sample_data.json"))
    if not folders:
        raise MissingTableError(
            f"expected a data set in nuScenes layout in {root}, found no folder of tables "
            "(v1.0-mini, v1.0-trainval, ...) there; check the path"
        )
    return folders


def find_version(root: str | Path) -> str:
    """The only version folder (``v1.0-...``) in ``root``; MissingTableError when not one."""
    folders = find_versions(root)
    if len(folders) > 1:
        raise MissingTableError(
            f"expected one folder of tables in {root}, found {', '.join(folders)}; give --version"
        )
    return folders[0]
