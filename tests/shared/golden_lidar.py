"""Access to the golden LiDAR data, for the tests of all packages (``pythonpath`` of their pytest).

Functions skip the test where the data is not beside the repository (``S4D_SHARED``).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SHARED = Path(os.environ.get("S4D_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GOLDEN = SHARED / "golden" / "lidar"
DATA = SHARED / "data" / "lidar"


def golden_file(name: str) -> Path:
    """Path of a golden file."""
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no golden data: {name} is not under S4D_SHARED")
    return path


def golden(name: str) -> Any:
    """One golden archive."""
    return np.load(golden_file(name))


def golden_rules() -> ModuleType:
    """The numpy-only rules that come with the golden data."""
    spec = importlib.util.spec_from_file_location("golden_rules", golden_file("rules.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_file(name: str) -> Path:
    """Path of one of the real clouds."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real cloud: {name} is not under S4D_SHARED")
    return path


def real_points() -> np.ndarray:
    """The ten real sweeps, (271 156, 5) float16."""
    return np.fromfile(data_file("nuscenes-10sweeps.points.fp16.bin"), np.float16).reshape(-1, 5)
