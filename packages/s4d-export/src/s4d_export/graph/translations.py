"""How single PyTorch operators become ONNX, where the exporter's own way is not the best one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from onnxscript import values

from .schema import ATTRIBUTES, DOMAIN, OP_TYPE, aggregation_schema

__all__ = ["translation_table"]

# Added to the scores of masked keys. exp(-1e4) is zero in float32 and float16, so the result is
# the same as with minus infinity, and the number fits in float16 (largest 65504).
MASKED_SCORE = -1e4
# atan(r) / r in powers of r^2 on 0..1: interpolated at Chebyshev nodes, error below 1e-8.
ATAN_SERIES = (
    0.999999998,
    -0.333332823,
    0.199982306,
    -0.142615737,
    0.10940199,
    -0.0837206395,
    0.0574635578,
    -0.0307175089,
    0.0106807194,
    -0.00174370114,
)


def _constant_like(value: float, like: Any) -> Any:
    constant: Any = op.Constant(value_float=value)
    return op.CastLike(constant, like)


def _scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T / sqrt(d) + mask) v in five nodes.

    The exporter's version also guards against rows with no key at all (IsNaN and Where over the
    whole score matrix), which this model never has. The query is scaled before the product, so
    that the product stays in range in float16.
    """
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention with dropout, causal mask or grouped queries")
    factor = scale if scale is not None else 1.0 / math.sqrt(query.shape[-1])
    scaled = op.Mul(query, _constant_like(float(factor), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        bias = attn_mask
        if str(attn_mask.dtype).endswith("BOOL"):
            bias = op.Where(
                attn_mask, _constant_like(0.0, query), _constant_like(MASKED_SCORE, query)
            )
        scores = op.Add(scores, bias)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _atan2(self: Any, other: Any) -> Any:
    """atan2(y, x) on all quadrants; y = 0 with x < 0 gives +pi, as in torch; (0, 0) gives 0.

    By polynomial, since ONNX Runtime has no Atan on CUDA and would take the last step of a frame
    back to the host. Within 4e-7 of the true angle in float32.
    """
    zero = _constant_like(0.0, self)
    y, x = op.Abs(self), op.Abs(other)
    larger = op.Max(x, y)
    ratio = op.Div(
        op.Min(x, y), op.Where(op.Equal(larger, zero), _constant_like(1.0, self), larger)
    )
    square = op.Mul(ratio, ratio)
    series = _constant_like(ATAN_SERIES[-1], self)
    for coefficient in reversed(ATAN_SERIES[:-1]):
        series = op.Add(op.Mul(series, square), _constant_like(coefficient, self))
    angle = op.Mul(series, ratio)
    angle = op.Where(op.Greater(y, x), op.Sub(_constant_like(math.pi / 2, self), angle), angle)
    angle = op.Where(op.Less(other, zero), op.Sub(_constant_like(math.pi, self), angle), angle)
    return op.Where(op.Less(self, zero), op.Neg(angle), angle)


def _where(condition: Any, self: Any, other: Any) -> Any:
    """Choice by value. Between booleans it is written with And and Or: not every runtime has a
    Where for them (ONNX Runtime's CPU provider has none)."""
    if not str(self.dtype).endswith("BOOL"):
        return op.Where(condition, self, other)
    return op.Or(op.And(condition, self), op.And(op.Not(condition), other))


def _deformable_aggregation(
    features: Any, spatial_shapes: Any, level_start_index: Any, locations: Any, weights: Any
) -> Any:
    node = values.Op(values.Opset(DOMAIN, 1), OP_TYPE, op_schema=aggregation_schema())
    # INT32 is TensorRT's index type; both tables are constants and the casts fold away.
    shapes = op.Cast(spatial_shapes, to=6)
    starts = op.Cast(level_start_index, to=6)
    return node(features, shapes, starts, locations, weights, **ATTRIBUTES)


def translation_table(plugin: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for ``torch.onnx.export``; `plugin` adds the aggregation node."""
    aten = torch.ops.aten
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
        aten.atan2.default: _atan2,
        aten.where.self: _where,
    }
    if plugin:
        import s4d_ops.torch  # noqa: F401  (registers torch.ops.s4d)

        table[torch.ops.s4d.deformable_aggregation.default] = _deformable_aggregation
    return table
