"""`s4d-train`: one command line, one module per subcommand.

The subcommand modules import what they need when they run, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ._version import __version__

COMMANDS = ("synth", "convert", "anchors", "fit", "eval", "view")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="s4d-train",
        description="nuScenes data, training and evaluation for Sparse4D.",
    )
    parser.add_argument("--version", action="version", version=f"s4d-train {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f".commands.{name}", __package__).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand. Exit code 0, 1 after an error, 2 for wrong usage, 130 if interrupted."""
    options = build_parser().parse_args(arguments)
    command = import_module(f".commands.{options.command}", __package__)
    try:
        return int(command.run(options) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from s4d_ops import S4DError

        if isinstance(error, BrokenPipeError):  # the reader of our output has gone: `... | head`
            sys.stderr.close()
            return 1
        if isinstance(error, S4DError | OSError):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
