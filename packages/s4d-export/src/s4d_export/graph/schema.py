"""ONNX schema of the deformable aggregation node, for the checker and for shape inference."""

from __future__ import annotations

from typing import Any

import onnx
from onnx.defs import OpSchema

__all__ = ["ATTRIBUTES", "DOMAIN", "OP_TYPE", "aggregation_schema", "register_schemas"]

DOMAIN = "s4d"
OP_TYPE = "DeformableAggregation"
ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": ""}

_FLOATS = ["tensor(float)", "tensor(float16)"]
_INTEGERS = ["tensor(int32)", "tensor(int64)"]


def aggregation_schema() -> OpSchema:
    """Schema of ``s4d::DeformableAggregation`` version 1.

    Shapes: features (B, F, C), spatial_shapes (N, L, 2), level_start_index (N, L),
    sampling_locations (B, A, P, N, 2), weights (B, A, P, N, L, G); output (B, A, C) in the type
    of the features. The three float inputs may differ in type: locations lose a third of a pixel
    in float16 and stay float32 in a half-precision graph.
    """
    parameter = OpSchema.FormalParameter
    return OpSchema(
        OP_TYPE,
        DOMAIN,
        1,
        doc="Sum over points, views and levels of weighted bilinear samples of the features.",
        inputs=[
            parameter("features", "T"),
            parameter("spatial_shapes", "I"),
            parameter("level_start_index", "I"),
            parameter("sampling_locations", "L"),
            parameter("weights", "W"),
        ],
        outputs=[parameter("output", "T")],
        type_constraints=[
            ("T", _FLOATS, "features and output"),
            ("L", _FLOATS, "sampling locations"),
            ("W", _FLOATS, "weights"),
            ("I", _INTEGERS, "layout of the feature rows"),
        ],
        attributes=[
            OpSchema.Attribute(name, onnx.defs.OpSchema.AttrType.STRING, "for TensorRT's registry")
            for name in ATTRIBUTES
        ],
    )


def _infer(context: Any) -> None:
    """Shape inference: (B, A, C) from the features' and the locations' shapes."""
    features, locations = context.get_input_type(0), context.get_input_type(3)
    if features is None or locations is None:  # what comes before is unknown: so is the result
        return
    result = onnx.TypeProto()
    result.tensor_type.elem_type = features.tensor_type.elem_type
    dims = [
        features.tensor_type.shape.dim[0],
        locations.tensor_type.shape.dim[1],
        features.tensor_type.shape.dim[2],
    ]
    for dim in dims:
        result.tensor_type.shape.dim.add().CopyFrom(dim)
    context.set_output_type(0, result)


def register_schemas() -> None:
    """Make the node known to onnx's checker and shape inference. Harmless when repeated."""
    if onnx.defs.has(OP_TYPE, DOMAIN):
        return
    schema = aggregation_schema()
    schema.set_type_and_shape_inference_function(_infer)
    onnx.defs.register_schema(schema)
