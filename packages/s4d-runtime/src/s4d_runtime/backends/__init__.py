"""Inference engines behind one small protocol, and the choice between them."""

from .base import Backend, EngineOptions
from .select import BACKENDS, load_backend

__all__ = ["BACKENDS", "Backend", "EngineOptions", "load_backend"]
