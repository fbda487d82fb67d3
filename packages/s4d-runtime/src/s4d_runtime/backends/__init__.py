"""Inference engines behind one small protocol, and the choice between them."""

from .base import Backend
from .select import BACKENDS, load_backend

__all__ = ["BACKENDS", "Backend", "load_backend"]
