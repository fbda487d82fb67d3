"""The command line ``s4d-run``. One module per subcommand; only the chosen one is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from s4d_ops import S4DError

from .._version import __version__
from ..errors import UsageError

__all__ = ["COMMANDS", "main"]

# Name, module in this package, help. A module has add_arguments(parser) and run(args) -> int.
COMMANDS: list[tuple[str, str, str]] = [
    ("drive", ".drive", "run an artifact over a data set in nuScenes layout"),
    ("view", ".view", "draw pictures of results that drive wrote"),
    ("bench", ".bench", "measure latency and memory of an artifact"),
    ("inspect", ".inspect", "check an artifact and print what is in it"),
    ("lidar", ".lidar", "encode point clouds with a LiDAR model"),
    ("compare", ".compare", "compare two tensor files, with limits"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns 0, 1 after an error, 2 after wrong usage, 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments).parse_args(arguments)
        return int(args.run(args))
    except SystemExit as stop:  # from argparse
        return stop.code if isinstance(stop.code, int) else 2
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except S4DError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        return _interrupted()  # while a native module, ONNX Runtime for one, was imported
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s4d-run", description="Sparse4D on board: tracked boxes from camera frames."
    )
    parser.add_argument("--version", action="version", version=f"s4d-run {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, module, text in COMMANDS:
        description = f"{text[0].upper()}{text[1:]}."
        command = subparsers.add_parser(name, help=text, description=description)
        if name == chosen:
            implementation = import_module(module, __name__)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser
