"""From a PyTorch model to one checked ONNX graph with the weights inside."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

from s4d_core import Sparse4D, use_reference_op

from .._version import __version__
from ..errors import ExportError
from .check import OPSET, check_graph
from .deployed import DeployedModel, example_inputs
from .naming import rename_graph
from .simplify import simplify
from .translations import translation_table

__all__ = ["Op", "export_graph", "trace"]

Op = Literal["plugin", "standard"]


def export_graph(model: Sparse4D, op: Op = "plugin") -> onnx.ModelProto:
    """Trace, translate, fold and name a model's graph, then check it against the contract.

    Args:
        model: is put into eval mode; BatchNorm is folded into the convolutions.
        op: "plugin" keeps the aggregation as one ``s4d::DeformableAggregation`` node; "standard"
            writes it with operators of opset 20 (GridSample).

    Returns:
        The model in float32, opset 20, IR version 10, names as ``naming`` describes.

    Raises:
        ExportError: the model cannot be traced.
        GraphError: the result breaks the contract.
    """
    wrapped = DeployedModel(model).eval()
    contract = wrapped.contract
    names = [spec.name for spec in contract.inputs]
    inputs = dict(zip(names, example_inputs(contract), strict=True))
    outputs = [spec.name for spec in contract.outputs]
    graph = trace(wrapped, inputs, outputs, "sparse4d", op)
    check_graph(graph, contract, op)
    return graph


def trace(
    wrapped: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: list[str],
    name: str,
    op: Op = "plugin",
) -> onnx.ModelProto:
    """Trace, translate, fold and name the graph of a module that holds the model as ``model``.

    Args:
        inputs: example inputs by name, in the order of the module's arguments.
        outputs: names of its results.
        name: of the graph.

    Raises:
        ExportError: the module cannot be traced.
    """
    wrapped.eval()
    door = use_reference_op() if op == "standard" else contextlib.nullcontext()
    with door, torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=outputs,
                custom_translation_table=translation_table(op == "plugin"),
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"the model cannot be exported: {_reason(error)}") from error
    assert program is not None
    with _quiet():
        simplify(program.model)
    graph = program.model_proto
    parameters = [key for key, _ in (*wrapped.named_parameters(), *wrapped.named_buffers())]
    rename_graph(graph, "model", parameters)
    graph.producer_name, graph.producer_version = "s4d-export", __version__
    graph.graph.name = name
    graph.doc_string = ""
    del graph.metadata_props[:]
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress lines and notices about absent torchvision say nothing to a user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
