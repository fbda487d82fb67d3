"""Which modules compute in half precision, as data, and how a model is given those types.

The same split as in exported FP16 graphs: convolutions, attention and feed-forward networks in
half, everything that holds metres, seconds, exponentials or final scores in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Attention

__all__ = [
    "HALF_MODULES",
    "HalfRule",
    "cast_at_boundaries",
    "is_half",
    "to_half",
    "use_tf32",
]


@dataclass(frozen=True)
class HalfRule:
    """Modules whose dotted name matches `modules` (shell pattern) compute in half, for a reason."""

    modules: str
    reason: str


# What no rule names stays in float32: anchors and their encoder (centimetres at 50 m need 13
# bits), key points, the camera encoder (projection matrices hold thousands), sampling weights,
# refinement and scores.
HALF_MODULES = (
    HalfRule("backbone*", "convolutions: most of the time, values of moderate range"),
    HalfRule("neck*", "convolutions"),
    HalfRule("head.instance_attention*", "matrix products of attention"),
    HalfRule("head.layers.*_attention*", "attention; the query is scaled before q k^T"),
    HalfRule("head.layers.*.attention_norm*", "normalisation between half products"),
    HalfRule("head.layers.*.aggregation.output*", "matrix product"),
    HalfRule("head.layers.*.ffn*", "matrix products and their normalisation"),
)


def is_half(name: str, rules: tuple[HalfRule, ...] = HALF_MODULES) -> bool:
    """Whether a module of this dotted name computes in half."""
    return any(fnmatchcase(name, rule.modules) for rule in rules)


def to_half(model: nn.Module, rules: tuple[HalfRule, ...] = HALF_MODULES) -> None:
    """Turn the parameters of the named modules into float16, in place."""
    for name, module in model.named_modules():
        if is_half(name, rules):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()


def cast_at_boundaries(model: nn.Module) -> None:
    """Let every layer with weights take inputs of any float type, in place.

    Linear and normalisation layers and attention cast what they get to the type of their weights.
    So types change exactly where a half part meets a float32 part, and nothing else needs to know.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(_cast_attention)
        elif isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_pre_hook(_cast_input)


def _cast_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    assert isinstance(module.weight, Tensor)
    return (args[0].to(module.weight.dtype), *args[1:])


def _cast_attention(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    assert isinstance(module, Attention)
    dtype = module.in_proj_weight.dtype
    query, key, value, *rest = args
    cast = query.to(dtype)
    # Attention projects query and key at once if they are one tensor.
    return (cast, cast if key is query else key.to(dtype), value.to(dtype), *rest)


@contextmanager
def use_tf32(allowed: bool) -> Iterator[None]:
    """Inside, float32 products and convolutions on CUDA may use TF32, or may not.

    Sums of half products are float32 either way.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        matmul.allow_tf32,
        cudnn.allow_tf32,
        matmul.allow_fp16_reduced_precision_reduction,
        cudnn.benchmark,
    )
    matmul.allow_tf32 = allowed
    cudnn.allow_tf32 = allowed
    matmul.allow_fp16_reduced_precision_reduction = False
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        matmul.allow_fp16_reduced_precision_reduction, cudnn.benchmark = before[2:]
