"""The house itself: public names, README's commands, ranges between the packages."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    "s4d_ops": ("S4DError", "library_path"),
    "s4d_ops.torch": ("deformable_aggregation",),
    "s4d_ops.reference": ("deformable_aggregation",),
    "s4d_core": (
        *("Sparse4D", "Sparse4DConfig", "State", "list_models", "build_model"),
        *("load_checkpoint", "save_checkpoint", "convert_checkpoint", "decode"),
    ),
    "s4d_core.lidar": (
        *("SparseTensor", "SubmanifoldConv3d", "SparseConv3d", "InverseConv3d"),
        *("Voxelizer", "SparseEncoder"),
    ),
    "s4d_train": ("generate", "convert", "make_anchors", "fit", "evaluate", "view_results"),
    "s4d_export": ("export_graph", "save_artifact", "to_half", "to_int8", "verify"),
    "s4d_runtime": ("Pipeline", "Frame", "Detections", "ARTIFACT_FORMAT"),
    "s4d_runtime.lidar": ("SparseEngine",),
}
COMMANDS = {"s4d-train": "s4d_train", "s4d-export": "s4d_export", "s4d-run": "s4d_runtime"}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("program", COMMANDS)
def test_commands_of_the_readme_exist(program: str) -> None:
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(rf"^{program} (\w+)", text, re.MULTILINE))
    assert used
    for name in used:
        command = [sys.executable, "-m", COMMANDS[program], name, "--help"]
        assert subprocess.run(command, capture_output=True).returncode == 0, (program, name)


def test_ranges_between_our_packages_hold() -> None:
    from packaging.requirements import Requirement

    for name in ("s4d-core", "s4d-train", "s4d-export", "s4d-runtime"):
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.name.startswith("s4d-"):
                assert metadata.version(requirement.name) in requirement.specifier, (name, line)
