"""nuScenes data, objectives, training and evaluation for Sparse4D.

The functions behind the commands. They are loaded on first use: neither importing the package nor
`s4d-train --help` loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .configs.config import FitConfig
    from .configs.recipes import get_recipe, list_recipes
    from .configs.settings import override
    from .data.anchors import make_anchors, save_anchors
    from .data.conversion import convert
    from .data.index import DriveIndex
    from .errors import CheckpointError, ConfigError, DataError, EvaluationError, TrainError
    from .evaluation.run import EvalOptions, evaluate
    from .synth import SynthConfig, generate
    from .trainer.loop import fit
    from .trainer.ranks import Ranks, started
    from .view import view_results

__all__ = [
    # synthetic world
    "SynthConfig",
    "generate",
    # data
    "DriveIndex",
    "convert",
    "make_anchors",
    "save_anchors",
    # training
    "FitConfig",
    "Ranks",
    "fit",
    "get_recipe",
    "list_recipes",
    "override",
    "started",
    # evaluation and pictures
    "EvalOptions",
    "evaluate",
    "view_results",
    # errors
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvaluationError",
    "TrainError",
    "__version__",
]

_MODULES = {
    "SynthConfig": "synth",
    "generate": "synth",
    "DriveIndex": "data.index",
    "convert": "data.conversion",
    "make_anchors": "data.anchors",
    "save_anchors": "data.anchors",
    "FitConfig": "configs.config",
    "Ranks": "trainer.ranks",
    "fit": "trainer.loop",
    "get_recipe": "configs.recipes",
    "list_recipes": "configs.recipes",
    "override": "configs.settings",
    "started": "trainer.ranks",
    "EvalOptions": "evaluation.run",
    "evaluate": "evaluation.run",
    "view_results": "view",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "EvaluationError": "errors",
    "TrainError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
