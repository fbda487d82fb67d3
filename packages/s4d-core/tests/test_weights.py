"""Published weight files: real names and shapes, written here as their code bases build them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_backbones import EVA, VOVNET
from torch import Tensor

import s4d_core
from s4d_core.backbones import (
    BackboneConfig,
    EvaConfig,
    ResNetConfig,
    VoVNetConfig,
    build_backbone,
    load_weights,
)
from s4d_core.backbones.weights import match_weights

Names = Iterator[tuple[str, tuple[int, ...]]]
CAFFE = ResNetConfig(
    layers=(3, 4, 23, 3), style="caffe", deformable=(False, False, True, True), frozen_stages=1
)


def norm(name: str, channels: int, counter: bool = True) -> Names:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (channels,)
    if counter:
        yield f"{name}.num_batches_tracked", ()


def linear(name: str, out: int, inner: int, bias: bool = True) -> Names:
    yield f"{name}.weight", (out, inner)
    if bias:
        yield f"{name}.bias", (out,)


def resnet(prefix: str, layers: tuple[int, ...], deformable: bool = False) -> Names:
    yield f"{prefix}conv1.weight", (64, 3, 7, 7)
    yield from norm(f"{prefix}bn1", 64)
    channels = 64
    for stage, count in enumerate(layers, start=1):
        width = 32 * 2**stage
        for i in range(count):
            block = f"{prefix}layer{stage}.{i}."
            yield f"{block}conv1.weight", (width, channels, 1, 1)
            yield from norm(f"{block}bn1", width)
            yield f"{block}conv2.weight", (width, width, 3, 3)
            if deformable and stage > 2:
                yield f"{block}conv2.conv_offset.weight", (27, width, 3, 3)
                yield f"{block}conv2.conv_offset.bias", (27,)
            yield from norm(f"{block}bn2", width)
            yield f"{block}conv3.weight", (4 * width, width, 1, 1)
            yield from norm(f"{block}bn3", 4 * width)
            if i == 0:
                yield f"{block}downsample.0.weight", (4 * width, channels, 1, 1)
                yield from norm(f"{block}downsample.1", 4 * width)
            channels = 4 * width


def pyramid(prefix: str, inputs: tuple[int, ...], outputs: int) -> Names:
    for i, channels in enumerate(inputs):
        yield f"{prefix}lateral_convs.{i}.conv.weight", (256, channels, 1, 1)
        yield f"{prefix}lateral_convs.{i}.conv.bias", (256,)
    for i in range(outputs):
        yield f"{prefix}fpn_convs.{i}.conv.weight", (256, 256, 3, 3)
        yield f"{prefix}fpn_convs.{i}.conv.bias", (256,)


def torchvision() -> Names:
    yield from resnet("", (3, 4, 6, 3))
    yield from linear("fc", 1000, 2048)


def fcos3d() -> Names:
    yield from resnet("backbone.", (3, 4, 23, 3), deformable=True)
    yield from pyramid("neck.", (512, 1024, 2048), 5)
    yield "bbox_head.cls_convs.0.conv.weight", (256, 256, 3, 3)
    yield "bbox_head.conv_cls.weight", (10, 256, 1, 1)


def nuimages() -> Names:
    yield from resnet("backbone.", (3, 4, 23, 3))
    yield from pyramid("neck.", (256, 512, 1024, 2048), 5)
    yield "rpn_head.rpn_conv.weight", (256, 256, 3, 3)
    yield from linear("roi_head.bbox_head.0.fc_cls", 11, 1024)


def dd3d(prefix: str) -> Names:
    def conv(name: str, out: int, inner: int, kernel: int) -> Names:
        yield f"{name}/conv.weight", (out, inner, kernel, kernel)
        yield from norm(f"{name}/norm", out, counter=False)  # frozen batch norm has none

    stem = (3, 64, 64, 128)
    for i in range(3):
        yield from conv(f"{prefix}stem.stem_{i + 1}", stem[i + 1], stem[i], 3)
    channels = 128
    stages = zip((128, 160, 192, 224), (256, 512, 768, 1024), (1, 3, 9, 3), strict=True)
    for stage, (width, out, blocks) in enumerate(stages, start=2):
        for block in range(1, blocks + 1):
            name = f"OSA{stage}_{block}"
            start = f"{prefix}stage{stage}.{name}."
            for i in range(5):
                inner = channels if i == 0 else width
                yield from conv(f"{start}layers.{i}.{name}_{i}", width, inner, 3)
            yield from conv(f"{start}concat.{name}_concat", out, channels + 5 * width, 1)
            yield f"{start}ese.fc.weight", (out, out, 1, 1)
            yield f"{start}ese.fc.bias", (out,)
            channels = out


def eva_blocks(prefix: str, width: int, hidden: int, depth: int) -> Names:
    yield f"{prefix}patch_embed.proj.weight", (width, 3, 16, 16)
    yield f"{prefix}patch_embed.proj.bias", (width,)
    for i in range(depth):
        block = f"{prefix}blocks.{i}."
        yield f"{block}attn.q_bias", (width,)
        yield f"{block}attn.v_bias", (width,)
        for part in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{block}attn.{part}", width, width, bias=False)
        yield from linear(f"{block}attn.proj", width, width)
        for part, size in (("norm1", width), ("norm2", width), ("mlp.ffn_ln", hidden)):
            yield f"{block}{part}.weight", (size,)
            yield f"{block}{part}.bias", (size,)
        yield from linear(f"{block}mlp.w1", hidden, width)
        yield from linear(f"{block}mlp.w2", hidden, width)
        yield from linear(f"{block}mlp.w3", width, hidden)


def eva_pretraining() -> Names:
    yield "cls_token", (1, 1, 1024)
    yield "mask_token", (1, 1, 1024)
    yield "pos_embed", (1, 257, 1024)
    yield from eva_blocks("", 1024, 2730, 24)
    yield "rope.freqs_cos", (256, 64)
    yield "norm.weight", (1024,)
    yield from linear("lm_head", 1024, 1024)


def simple_pyramid(prefix: str, width: int) -> Names:
    def up(name: str, inner: int, out: int) -> Names:
        yield f"{name}.weight", (inner, out, 2, 2)
        yield f"{name}.bias", (out,)

    def joint(name: str, out: int, inner: int, kernel: int) -> Names:
        yield f"{name}.weight", (out, inner, kernel, kernel)
        yield f"{name}.norm.weight", (out,)
        yield f"{name}.norm.bias", (out,)

    yield from up(f"{prefix}simfp_2.0", width, width // 2)
    yield f"{prefix}simfp_2.1.weight", (width // 2,)
    yield f"{prefix}simfp_2.1.bias", (width // 2,)
    yield from up(f"{prefix}simfp_2.3", width // 2, width // 4)
    yield from up(f"{prefix}simfp_3.0", width, width // 2)
    sizes = ((2, 4, width // 4), (3, 1, width // 2), (4, 0, width), (5, 1, width))
    for level, first, inner in sizes:
        yield from joint(f"{prefix}simfp_{level}.{first}", 256, inner, 1)
        yield from joint(f"{prefix}simfp_{level}.{first + 1}", 256, 256, 3)


def eva_detector() -> Names:
    yield "backbone.net.pos_embed", (1, 197, 1024)
    yield from eva_blocks("backbone.net.", 1024, 2730, 24)
    yield "backbone.net.rope_win.freqs_cos", (256, 64)
    yield from simple_pyramid("backbone.", 1024)
    yield from linear("roi_heads.box_head.0.fc1", 1024, 1024)


def eva_streampetr() -> Names:
    yield "img_backbone.pos_embed", (1, 197, 1024)
    yield from eva_blocks("img_backbone.", 1024, 2730, 24)
    yield "img_backbone.rope_glb.freqs_sin", (400, 64)
    yield from simple_pyramid("img_backbone.adapter.", 1024)


CASES: dict[str, tuple[BackboneConfig, Callable[[], Names], str]] = {
    "torchvision": (ResNetConfig(), torchvision, "torchvision"),
    "fcos3d": (CAFFE, fcos3d, "FCOS3D, first layer turned from BGR to RGB; left out: bbox_head"),
    "nuimages": (
        ResNetConfig(layers=(3, 4, 23, 3)),
        nuimages,
        r"MMDetection; left out: neck \(18\), roi_head \(2\), rpn_head \(1\)",
    ),
    "dd3d": (VoVNetConfig(), lambda: dd3d("backbone.bottom_up."), "DD3D, first layer turned"),
    "dd3d_petr": (VoVNetConfig(), lambda: dd3d("img_backbone."), "DD3D, first layer turned"),
    "eva_pretraining": (EvaConfig(), eva_pretraining, "EVA-02; .* not in the file .*pyramid"),
    "eva_detector": (EvaConfig(), eva_detector, "EVA-02 detector; left out: backbone .*roi_heads"),
    "eva_streampetr": (EvaConfig(), eva_streampetr, "EVA-02; left out: img_backbone"),
}


def empty(names: Names) -> dict[str, Tensor]:
    """Tensors of the right shapes that take no memory."""
    return {name: torch.ones(()).expand(shape) for name, shape in names}


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_of_published_files(case: str, tmp_path: Path) -> None:
    config, names, report = CASES[case]
    torch.save({"state_dict": empty(names())}, tmp_path / "weights.pth")
    found = s4d_core.convert.read_weights(tmp_path / "weights.pth")
    with torch.device("meta"):
        own = build_backbone(config).state_dict()
    values, said = match_weights(own, config, found, "weights.pth")
    assert re.search(report, str(said)), str(said)
    absent = {n for n in own if n not in values and not n.endswith("num_batches_tracked")}
    assert absent == set(said.fresh)
    assert not absent or case == "eva_pretraining"


def foreign(config: BackboneConfig, names: Names) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return build_backbone(config), {n: torch.randn(shape) for n, shape in names}


def test_colours_are_turned_around() -> None:
    config = ResNetConfig(layers=(1, 1, 1, 1), style="caffe")
    model, found = foreign(config, resnet("", (1, 1, 1, 1)))
    load_weights(model, config, found, "file")
    assert torch.equal(model.conv1.weight[:, 0], found["conv1.weight"][:, 2])
    config = replace(config, style="pytorch")
    load_weights(model, config, found, "file")
    assert torch.equal(model.conv1.weight, found["conv1.weight"])


def test_offsets_may_be_missing_and_stay_zero() -> None:
    config = ResNetConfig(layers=(1, 1, 1, 1), deformable=(False, False, False, True))
    model, found = foreign(config, resnet("", (1, 1, 1, 1)))
    report = load_weights(model, config, found, "file")
    assert report.fresh == ("layer4.0.conv2.conv_offset.weight", "layer4.0.conv2.conv_offset.bias")
    assert not model.layer4[0].conv2.conv_offset.weight.any()


def test_positions_are_resampled_without_the_class_token() -> None:
    names = [("pos_embed", (1, 17, 32)), *eva_blocks("", 32, 40, 3)]
    model, found = foreign(EVA, iter(names))
    load_weights(model, EVA, found, "file")
    grid = found["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = torch.nn.functional.interpolate(grid, EVA.position_grid, mode="bicubic")
    torch.testing.assert_close(model.position.data, expected)
    found["pos_embed"] = torch.randn(1, 15, 32)  # the configuration's own grid, 3 x 5
    load_weights(model, EVA, found, "file")
    assert torch.equal(model.position.flatten(2), found["pos_embed"].transpose(1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("layer3.0.bn2.weight"),
            r"1 weights missing \(layer3\.0\.bn2\.weight\), 0",
        ),
        (lambda w: w.update(stray=torch.zeros(1)), r"0 weights missing, 1 unexpected \(stray\)"),
        (
            lambda w: w.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            r"conv1\.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)",
        ),
        (lambda w: w["bn1.bias"].fill_(torch.nan), r"bn1\.bias holds NaN"),
    ],
)
def test_what_does_not_fit_is_said_and_changes_nothing(
    change: Callable[[dict], object], message: str
) -> None:
    config = ResNetConfig(layers=(1, 1, 1, 1))
    model, found = foreign(config, resnet("", (1, 1, 1, 1)))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    change(found)
    with pytest.raises(s4d_core.CheckpointError, match=message):
        load_weights(model, config, found, "file")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_another_network_is_recognised() -> None:
    model, found = foreign(VOVNET, resnet("backbone.", (1, 1, 1, 1)))
    with pytest.raises(
        s4d_core.CheckpointError,
        match=r"no weights of a vovnet .*'backbone.bottom_up.stem.stem_1/conv.weight' \(DD3D\)",
    ):
        load_weights(model, VOVNET, found, "file")


def test_the_pyramid_of_a_detector(tmp_path: Path) -> None:
    config = s4d_core.Sparse4DConfig(name="r50", num_anchors=20, num_temporal=10, num_output=10)
    with torch.device("meta"):
        model = s4d_core.Sparse4D(config, torch.zeros(20, 11))
    model.neck.to_empty(device="cpu")
    model.backbone = build_backbone(config.backbone)
    names = [*resnet("backbone.", (3, 4, 6, 3)), *pyramid("neck.", (256, 512, 1024, 2048), 5)]
    torch.save(empty(iter(names)), tmp_path / "detector.pth")
    s4d_core.load_backbone(model, tmp_path / "detector.pth", neck=True)
    assert all(bool((p == 1).all()) for p in model.neck.parameters())
    torch.save(empty(iter(names[:-30])), tmp_path / "detector.pth")
    with pytest.raises(s4d_core.CheckpointError, match="not a checkpoint of the feature pyramid"):
        s4d_core.load_backbone(model, tmp_path / "detector.pth", neck=True)


def test_a_published_detector_has_the_names_of_dd3d_and_torchvision() -> None:
    for backbone, expected in (
        (VoVNetConfig(), dd3d("img_backbone.")),
        (ResNetConfig(layers=(3, 4, 23, 3)), resnet("img_backbone.", (3, 4, 23, 3))),
    ):
        config = s4d_core.Sparse4DConfig(name="detector", backbone=backbone)
        with torch.device("meta"):
            own = {f"backbone.{n}": v for n, v in build_backbone(backbone).state_dict().items()}
        names = s4d_core.reference_names(own, config)
        found = {
            names[n]: tuple(v.shape)
            for n, v in own.items()
            if isinstance(backbone, ResNetConfig) or not n.endswith("num_batches_tracked")
        }
        assert found == dict(expected)
