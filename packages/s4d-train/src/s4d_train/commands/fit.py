"""`s4d-train fit CONFIG`: train a model."""

from __future__ import annotations

import argparse

HELP = "train a model"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `fit`."""
    parser = subparsers.add_parser(
        "fit",
        help=HELP,
        description=(
            "Train a model. CONFIG is a name (see --list) or the config.json of an earlier run. "
            "Several devices: torchrun --nproc-per-node N -m s4d_train fit CONFIG ..."
        ),
    )
    parser.add_argument("config", nargs="?", help="name of a config, or a config.json")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting, such as --set run.batch=4; may be repeated",
    )
    parser.add_argument("--out", default="", help="output folder (default: out/<name>)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue at the last checkpoint in the output folder, if there is one",
    )
    parser.add_argument("--device", default="", help="such as cpu or cuda:1 (default: automatic)")
    parser.add_argument("--list", action="store_true", help="list the configs and leave")
    parser.add_argument("--show", action="store_true", help="print the settings and leave")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs `fit`."""
    import json

    from ..configs.recipes import RECIPES
    from ..configs.settings import override, to_dict
    from ..errors import ConfigError

    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name:<40}{(recipe.__doc__ or '').splitlines()[0]}")
        return 0
    if not args.config:
        raise ConfigError("which config? Give a name of 's4d-train fit --list' or a config.json.")
    config = override(read_config(args.config), args.overrides)
    if args.out:
        config = override(config, [f"out={args.out}"])
    if args.show:
        print(json.dumps(to_dict(config), indent=2))
        return 0

    from ..trainer.loop import fit
    from ..trainer.ranks import started

    with started(args.device) as ranks:
        final = fit(config, ranks, resume=args.resume, show=not args.no_progress)
        if ranks.first:
            print(final)
    return 0


def read_config(source: str):  # type: ignore[no-untyped-def]
    """The settings of a name or a file.

    Raises:
        ConfigError: there is no such name or file, or a setting in it is wrong.
    """
    import json
    from pathlib import Path

    from ..configs.config import FitConfig
    from ..configs.recipes import get_recipe
    from ..configs.settings import from_dict
    from ..errors import ConfigError

    if not source.endswith(".json"):
        return get_recipe(source)
    try:
        content = json.loads(Path(source).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the settings {source}: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"the settings {source} are not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"expected an object of settings in {source}, as 'fit --show' prints it.")
    try:
        return from_dict(FitConfig, content)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
