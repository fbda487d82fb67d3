"""The command line: ``s4d-export {onnx,quantize,engine,verify,overflow,inspect,lidar}``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from .._version import __version__
from .lidar import add_command as add_lidar_command
from .overflow import add_command as add_overflow_command
from .quantize import add_command as add_quantize_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0 success, 1 an error or a failed comparison, 130 if interrupted. Wrong usage leaves with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    from s4d_ops import S4DError

    try:
        return run(options)
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        sys.stderr.close()
        return 1
    except (S4DError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s4d-export", description="From a Sparse4D checkpoint to a verified artifact."
    )
    parser.add_argument("--version", action="version", version=f"s4d-export {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_onnx(commands)
    add_quantize_command(commands)
    _add_verify(commands)
    _add_engine(commands)
    add_overflow_command(commands)
    _add_inspect(commands)
    add_lidar_command(commands)
    return parser


def _add_onnx(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("onnx", help="write the artifact NAME.s4d of a checkpoint")
    command.add_argument("checkpoint", help="checkpoint folder (config.json, model.safetensors)")
    command.add_argument("-o", "--output", required=True, metavar="NAME.s4d")
    command.add_argument(
        "--op",
        choices=("plugin", "standard"),
        default="plugin",
        help="aggregation as one node that s4d-ops implements, or as standard ONNX operators",
    )
    command.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="fp16: backbone, neck, attention and FFN in half, typed in the graph",
    )
    command.add_argument(
        "--plan", metavar="JSON", help="precision plan of fp16 (default: the built-in one)"
    )
    command.add_argument("--name", help="name in the manifest (default: the output's file name)")
    command.add_argument(
        "--verify", action="store_true", help="compare with torch over 8 random frames afterwards"
    )
    command.add_argument(
        "--split",
        action="store_true",
        help="write SparseEnd2End's three graphs into the folder that -o names",
    )
    command.set_defaults(run=_onnx)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "verify", help="compare an artifact with its checkpoint over a sequence of frames"
    )
    command.add_argument("checkpoint")
    command.add_argument("artifact", nargs="+", help="NAME.s4d; several are compared one by one")
    command.add_argument("--frames", type=_positive, default=8, metavar="N")
    command.add_argument(
        "--data", metavar="DIR", help="images of a data set in nuScenes layout (default: random)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the random frames")
    command.add_argument(
        "--backend",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="engines of s4d-runtime; 'all' for each that works here (default: auto, the best)",
    )
    command.add_argument(
        "--stages", action="store_true", help="also the errors of the model's parts"
    )
    command.add_argument(
        "--first-divergence",
        action="store_true",
        help="name the first tensor of the graph that is not what the checkpoint computes",
    )
    command.add_argument("--threads", type=int, default=0, help="CPU threads (default: engine's)")
    command.add_argument("--json", metavar="FILE", help="write the figures; - for standard output")
    command.set_defaults(run=_verify)


def _add_engine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "engine", help="build a TensorRT engine artifact from an ONNX artifact, on its target GPU"
    )
    command.add_argument("artifact")
    command.add_argument("-o", "--output", required=True, metavar="NAME.s4d")
    command.add_argument(
        "--target",
        metavar="NAME",
        help="x86, orin-jetpack6, orin-jetpack7 or thor-jetpack7: check that this machine is of "
        "that kind, and take its settings (default: whatever this machine is)",
    )
    command.add_argument(
        "--workspace", type=_positive, metavar="MIB", help="scratch memory (default: the target's)"
    )
    command.add_argument("--timing-cache", metavar="FILE", help="read and update this cache")
    command.add_argument(
        "--version-compatible", action="store_true", help="run with later TensorRT releases too"
    )
    command.add_argument(
        "--hardware-compatible", action="store_true", help="run on all GPUs from Ampere on"
    )
    command.add_argument(
        "--embed-plugin", action="store_true", help="put the operator library into the engine"
    )
    command.set_defaults(run=_engine)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("inspect", help="show what an artifact or ONNX file holds")
    command.add_argument("file")
    command.add_argument("--json", action="store_true", help="as JSON on standard output")
    command.set_defaults(run=_inspect)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def _onnx(options: argparse.Namespace) -> int:
    from s4d_core import load_checkpoint

    from ..artifact import build_manifest, check_destination, save_artifact
    from ..graph.tracing import export_graph
    from ..half.conversion import check_plan, to_half
    from ..half.plan import load_plan
    from .text import tell

    if options.split:
        return _split(options)
    path = check_destination(options.output)
    plan = load_plan(options.plan, options.precision)
    model = load_checkpoint(options.checkpoint)
    tell(f"onnx: tracing {model.config.name}, which takes from seconds to minutes")
    graph = export_graph(model, options.op)
    members = {}
    if plan is not None:
        tell("onnx: half precision")
        if options.plan:
            check_plan(graph, plan)
        graph = to_half(graph, plan)
        members["precision_plan.json"] = plan.to_json().encode()
    manifest = build_manifest(
        model.config, options.name or path.stem, options.op, options.precision
    )
    save_artifact(path, graph, manifest, members)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(graph.graph.node)} nodes")
    if not options.verify:
        return 0
    from ..frames import random_frames
    from ..verification.report import format_result
    from ..verification.runs import verify

    result = verify(model, path, random_frames(model.config, 8), progress=sys.stderr.isatty())
    print(format_result(result))
    return 0 if result["passed"] else 1


def _split(options: argparse.Namespace) -> int:
    from s4d_core import load_checkpoint

    from ..errors import ExportError
    from ..split.graphs import export_split, save_split
    from .text import tell

    if options.op != "plugin" or options.precision != "fp32" or options.verify:
        raise ExportError(
            "--split writes float32 graphs with that system's operator: it goes with no other "
            "--op or --precision, and not with --verify"
        )
    model = load_checkpoint(options.checkpoint)
    tell(f"onnx: tracing three graphs of {model.config.name}, which takes from seconds to minutes")
    for path in save_split(export_split(model), model, options.output):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from s4d_core import load_checkpoint

    from ..frames import nuscenes_frames, random_frames
    from ..verification.report import format_examination
    from ..verification.runs import examine

    model = load_checkpoint(options.checkpoint)
    if options.data:
        frames = nuscenes_frames(model.config, options.data, options.frames)
    else:
        frames = random_frames(model.config, options.frames, options.seed)
    result = examine(
        model,
        options.artifact,
        frames,
        options.backend,
        options.threads,
        options.stages,
        options.first_divergence,
        sys.stderr.isatty(),
    )
    text = json.dumps(result, indent=1)
    if options.json == "-":
        print(text)
    else:
        print(format_examination(result))
        if options.json:
            from .text import write_text

            write_text(options.json, text + "\n")
    return 0 if result["passed"] else 1


def _engine(options: argparse.Namespace) -> int:
    from ..engine.build import BuildOptions, build_engine

    log = build_engine(
        options.artifact,
        options.output,
        BuildOptions(
            target=options.target,
            workspace_mib=options.workspace,
            timing_cache=options.timing_cache,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            embed_plugin=options.embed_plugin,
        ),
    )
    for warning in log["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{options.output}: engine of {log['engine_bytes'] / 1e6:.1f} MB, "
        f"{len(log['layers'])} layers, TensorRT {log['tensorrt']}"
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from ..inspection import describe, format_description

    info = describe(options.file)
    print(json.dumps(info, indent=1) if options.json else format_description(info))
    return 0
