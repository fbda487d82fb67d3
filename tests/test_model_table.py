"""docs/models.md is what its program writes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import s4d_core

TOOL = Path(__file__).resolve().parents[1] / "tools" / "model_zoo" / "model_table.py"
# Counted anew here; the others take their line from the page, which takes half a minute less.
COUNTED = ("sparse4dv3_tiny", "sparse4dv2_r50_256x704")


def _tool() -> ModuleType:
    sys.path.insert(0, str(TOOL.parent))  # where its other module is
    spec = importlib.util.spec_from_file_location("model_table", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    tool = _tool()
    page = tool.DOCUMENT.read_text()
    lines = {
        line.split("`")[1]: line for line in reversed(page.splitlines()) if "`sparse4d" in line
    }

    def line(name: str) -> str:
        return tool.model_line(name) if name in COUNTED else lines[name]

    assert set(lines) == set(s4d_core.list_models())
    assert tool.document(line) == page
