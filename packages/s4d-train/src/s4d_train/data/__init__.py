"""Data of s4d-train: converted index, data set, augmentation, samplers."""

from .batch import Batch
from .config import CAMERA_NAMES, CLASS_NAMES, AugmentConfig, DataConfig

__all__ = ["CAMERA_NAMES", "CLASS_NAMES", "AugmentConfig", "Batch", "DataConfig"]
