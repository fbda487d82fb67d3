"""Fast inference with PyTorch: `compile_inference`."""

from .compiled import CompiledModel, compile_inference

__all__ = ["CompiledModel", "compile_inference"]
