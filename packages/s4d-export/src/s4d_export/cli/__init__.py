"""The command line, a module per large command."""

from .program import main

__all__ = ["main"]
