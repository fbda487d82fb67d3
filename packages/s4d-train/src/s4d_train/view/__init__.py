"""Pictures of what training sees, and of results. Needs the extra ``runtime``."""

from .results import view_results
from .samples import draw_depth, draw_sample

__all__ = ["draw_depth", "draw_sample", "view_results"]
