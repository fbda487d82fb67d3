"""Fast inference with PyTorch: `compile_inference`."""

from .build import compile_inference
from .compiled import CompiledModel

__all__ = ["CompiledModel", "compile_inference"]
