"""Golden training arrays shared by the tests: where they are, and the numbers fed to the draws."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED = Path(os.environ.get("S4D_SHARED", Path(__file__).resolve().parents[4] / "shared"))
FOLDER = SHARED / "golden" / "v3"

needs_golden = pytest.mark.skipif(
    not (FOLDER / "golden_train.npz").is_file(),
    reason=f"golden arrays not found in {FOLDER}; set S4D_SHARED to the folder that holds golden/",
)


def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "golden_train.npz") as archive:
        return {name: archive[name] for name in archive.files}


def rules() -> ModuleType:
    """The numpy rules beside the arrays (weights, images, ground truth)."""
    spec = importlib.util.spec_from_file_location("golden_rules", FOLDER / "rules.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ground_truth_lists(z: dict[str, np.ndarray], frame: int, batch: int = 2) -> list[list[Tensor]]:
    """Boxes, labels and ids of a frame, one tensor per sample."""
    return [
        [torch.from_numpy(z[f"in/f{frame}/gt_{kind}_b{b}"]) for b in range(batch)]
        for kind in ("boxes", "labels", "ids")
    ]


class FedDraws:
    """Draws that return the golden numbers of one frame in the order of their use."""

    def __init__(self, z: dict[str, np.ndarray], frame: int) -> None:
        self.numbers = [z[f"in/f{frame}/rand_like{k}"] for k in range(3)]
        self.order = z["in/randperm"]

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numbers = torch.from_numpy(self.numbers.pop(0)).to(dtype)
        assert tuple(numbers.shape) == shape
        return numbers

    def permutation(self, count: int) -> Tensor:
        assert count == len(self.order)
        return torch.from_numpy(self.order)
