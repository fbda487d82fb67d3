"""A view of a data set in which any choice of scenes is a split that the devkit knows.

The devkit takes splits of its own from `<dataroot>/<version>/splits.json`. The data set itself is
not
written to: the view is a temporary folder of links with that one file added.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import EvaluationError

SPLIT = "s4d_chosen_scenes"
"""Name of the split in the view."""


@contextmanager
def scene_view(root: Path, version: str, scenes: Sequence[str]) -> Iterator[Path]:
    """A temporary data root in which split `SPLIT` is the scenes named `scenes`.

    Raises:
        EvaluationError: `root` has no tables of `version`, or no scene was chosen.
    """
    tables = root / version
    if not (tables / "scene.json").is_file():
        raise EvaluationError(
            f"expected the nuScenes tables of '{version}' in {tables}; give --data the data set's "
            "folder and --version its version."
        )
    if not scenes:
        raise EvaluationError("the split has no scene in this data set; choose another --split.")
    with tempfile.TemporaryDirectory(prefix="s4d-view-") as name:
        view = Path(name)
        for entry in root.resolve().iterdir():
            if entry.name != version:
                (view / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
        (view / version).mkdir()
        for table in tables.resolve().iterdir():
            if table.name != "splits.json":
                (view / version / table.name).symlink_to(table)
        (view / version / "splits.json").write_text(json.dumps({SPLIT: list(scenes)}))
        yield view
