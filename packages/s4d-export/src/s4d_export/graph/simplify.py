"""Fold what does not depend on inputs, and remove what does nothing. Values stay as they are.

onnxscript's stock optimisation tries forty rules on every node twice and leaves slices and
transposes of large weights in place; this is the part of it that such a graph needs.
"""

from __future__ import annotations

import onnxscript.optimizer
from onnxscript import ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common

__all__ = ["simplify"]

FOLD_LIMIT = 1 << 28  # elements; no constant of this model comes near

# BatchNorm goes into the convolution before it: the one rule here that rounds (once, in float32).
RULES = (
    common.fuse_batchnorm_into_conv_rule,
    common.cast_cast_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.no_op_transpose_rule,
    common.transpose_transpose_rule,
    common.reshape_reshape_rule,
    common.unsqueeze_unsqueeze_rule,
    common.add_0_rule,
    common.sub_0_rule,
    common.mul_by_1_rule,
    common.div_by_1_rule,
)


def simplify(model: ir.Model) -> None:
    """Inline, fold and clean a model as the exporter made it, in place."""
    passes = ir.passes.common
    passes.InlinePass()(model)
    _fold(model)
    RewritePass(list(RULES))(model)
    _fold(model)
    for step in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=FOLD_LIMIT),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)


def _fold(model: ir.Model) -> None:
    onnxscript.optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
    )
