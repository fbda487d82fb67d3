"""Split layers in the place of a model's own: nothing that the plain parts ask for is missing.

The kernels need a GPU (test_inference_kernels_gpu.py). Here a stand-in lets their modules be
imported where Triton is missing, and torch forms the sums of the parts.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from test_inference import FAMILY, Drive, answers, assert_same, family_member, nudged
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("any_op")
NEEDS_TRITON = ("split_products", "split_attention", "split_layers")


@pytest.fixture
def split_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, with sums in torch instead of kernels."""
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit, triton.language = lambda function: function, language
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.language", language)
    names = [f"s4d_core.inference.{name}" for name in NEEDS_TRITON]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    from s4d_core.inference import split_layers as module

    def linear(x: Tensor, parts: Tensor, finish: Tensor, relu: bool = False) -> Tensor:
        weight = (parts[0].float() + parts[2].float()) * finish[1][:, None]
        out = nn.functional.linear(x.float(), weight, finish[0])
        return out.relu() if relu else out

    monkeypatch.setattr(module, "split_linear", linear)
    monkeypatch.setattr(module, "can_attend", lambda *_: False)
    yield module
    for name in names:
        sys.modules.pop(name, None)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_split_layers_take_the_place_of_the_plain_ones(name: str, split_layers: ModuleType) -> None:
    built = family_member(name)
    split = copy.deepcopy(built)
    assert split_layers.split_layers(split.head) > 0
    drive = Drive(built.config)
    ahead = 3 if "offline" in name else 0
    frames = [drive(k) for k in range(2 + ahead)]
    found, wanted = answers(split, frames), answers(built, frames)
    moved = answers(built, nudged(frames))
    for got, want, other in zip(found, wanted, moved, strict=True):
        assert_same(got, want, moved=other)
