"""Data of s4d-train: converted index, data set, augmentation, samplers.

Names that need torch are imported on first use: conversion and its worker processes do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import CAMERA_NAMES, CLASS_NAMES, AugmentConfig, DataConfig
from .index import INDEX_FORMAT, DriveIndex

if TYPE_CHECKING:
    from .batch import Batch, collate
    from .dataset import DriveDataset
    from .preparation import ImagePreparation
    from .samplers import Draw, EvaluationSampler, SequenceSampler, scene_rows, sequence_rows

__all__ = [
    "CAMERA_NAMES",
    "CLASS_NAMES",
    "INDEX_FORMAT",
    "AugmentConfig",
    "Batch",
    "DataConfig",
    "Draw",
    "DriveDataset",
    "DriveIndex",
    "EvaluationSampler",
    "ImagePreparation",
    "SequenceSampler",
    "collate",
    "scene_rows",
    "sequence_rows",
]

_MODULES = {
    "Batch": "batch",
    "collate": "batch",
    "Draw": "samplers",
    "DriveDataset": "dataset",
    "EvaluationSampler": "samplers",
    "ImagePreparation": "preparation",
    "SequenceSampler": "samplers",
    "scene_rows": "samplers",
    "sequence_rows": "samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
