"""A synthetic world in nuScenes layout: numpy and Pillow only, no torch, no devkit."""

from .generate import SynthConfig, SynthError, generate

__all__ = ["SynthConfig", "SynthError", "generate"]
