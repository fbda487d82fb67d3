"""Sparse layers, encoder variants, voxeliser, checkpoints."""

import dataclasses

import numpy as np
import pytest
import torch

from s4d_core.errors import CheckpointError, ConfigError, InvalidInputError
from s4d_core.lidar import (
    InverseConv3d,
    SparseConv3d,
    SparseEncoderConfig,
    SparseTensor,
    SubmanifoldConv3d,
    Voxelizer,
    VoxelizerConfig,
    build_encoder,
    convert_encoder_checkpoint,
    convert_encoder_state,
    encoder_config,
    list_encoders,
    load_encoder,
    save_encoder,
)
from s4d_core.lidar.convert import foreign_names

ZYX = SparseEncoderConfig("zyx", 5, (4, 8, 12), 1, 16, (27, 20, 24), "zyx", ((1, 1, 1), (0, 1, 1)))
XYZ = dataclasses.replace(
    ZYX, name="xyz", grid_shape=(24, 20, 27), index_order="xyz", block_bias=False
)


def cloud(shape, count=300, batch=2, channels=5, seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(batch * int(np.prod(shape)))[:count]
    rows = np.stack(np.unravel_index(keys, (batch, *shape)), 1).astype(np.int32)
    return torch.from_numpy(rng.standard_normal((count, channels))), torch.from_numpy(rows)


def test_down_and_up_again():
    features, rows = cloud((8, 9, 10))
    x = SparseTensor(features, rows, (8, 9, 10), 2)
    down = SparseConv3d(5, 6, 3, 2, 1, key="a").double()
    up = InverseConv3d(6, 7, 3, key="a").double()
    same = SubmanifoldConv3d(7, 7).double()
    y = up(down(x))
    assert y.sites is x.sites and y.features.shape == (300, 7)
    same(y)
    same(y)
    assert len(x.sites.submanifold) == 1  # one rulebook for all layers on these sites
    # The inverse is the transposed convolution at the sites that were there before.
    dense = torch.nn.functional.conv_transpose3d(
        down(SparseTensor(features, rows, (8, 9, 10), 2)).dense(),
        up.weight.permute(4, 0, 1, 2, 3), up.bias, 2, 1, (1, 0, 1),
    )  # fmt: skip
    at = rows.long()
    want = dense[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]]
    torch.testing.assert_close(y.features, want, rtol=0, atol=1e-12)


def test_misuse_is_named():
    features, rows = cloud((8, 9, 10))
    x = SparseTensor(features, rows, (8, 9, 10), 2)
    with pytest.raises(InvalidInputError, match="no convolution with key"):
        InverseConv3d(5, 5, 3, key="b").double()(x)
    y = SparseConv3d(5, 6, 3, 2, 1, key="a").double()(x)
    with pytest.raises(InvalidInputError, match="output sites"):
        InverseConv3d(5, 5, 3, key="a").double()(x)
    with pytest.raises(InvalidInputError, match="used by another"):
        SparseConv3d(5, 6, 3, 2, 1, key="a").double()(x)
    with pytest.raises(InvalidInputError, match="channels"):
        SubmanifoldConv3d(5, 5).double()(y)
    with pytest.raises(InvalidInputError, match="indices"):
        SparseTensor(features, rows[:, :3], (8, 9, 10))
    with pytest.raises(InvalidInputError, match="rows"):
        x.replace(features[:3])


def test_xyz_variant_is_the_same_network():
    """Swapping the axes of rows, weights and grid swaps height and width of the map."""
    config = dataclasses.replace(ZYX, block_bias=False)
    encoder = build_encoder(config).double().eval()
    other = build_encoder(XYZ).double().eval()
    state = encoder.state_dict()
    flipped = {k: v.permute(0, 3, 2, 1, 4) if v.dim() == 5 else v for k, v in state.items()}
    other.load_state_dict(flipped)
    features, rows = cloud(ZYX.grid_shape, 900)
    bev = encoder(features, rows, 2)
    swapped = other(features, rows[:, [0, 3, 2, 1]], 2)
    assert bev.abs().max() > 0
    torch.testing.assert_close(swapped, bev.transpose(2, 3), rtol=0, atol=1e-12)


def test_train_step_moves_every_parameter():
    encoder = build_encoder(ZYX)
    features, rows = cloud(ZYX.grid_shape, 900)
    out = encoder(features.float(), rows, 2)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in encoder.named_parameters():
        # A bias before batch normalisation has no effect in training.
        if not name.endswith(("conv1.bias", "conv2.bias")):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", [ZYX, XYZ])
@pytest.mark.parametrize("layout", ["spconv1", "spconv2"])
def test_foreign_checkpoints(config, layout, tmp_path):
    source = "centerpoint" if config is ZYX else "bevfusion"
    encoder = build_encoder(config).eval()
    names = foreign_names(config, source)
    prefix = "backbone." if source == "centerpoint" else "encoders.lidar.backbone."
    state = {"neck.weight": torch.zeros(2)}
    for ours, value in encoder.state_dict().items():
        module, _, leaf = ours.rpartition(".")
        if value.dim() == 5 and layout == "spconv1":
            value = value.permute(1, 2, 3, 4, 0)
        state[f"{prefix}{names[module]}.{leaf}"] = value
    torch.save({"state_dict": state, "epoch": 20}, tmp_path / "foreign.pth")
    loaded = load_encoder(
        convert_encoder_checkpoint(tmp_path / "foreign.pth", tmp_path / "out", config)
    )
    assert loaded.config == config
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    state[f"{prefix}conv_input.3.weight"] = torch.zeros(1)
    state[f"{prefix}{names['out.conv']}.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="no place"):
        convert_encoder_state(state, config)
    del state[f"{prefix}conv_input.1.weight"]
    with pytest.raises(CheckpointError, match="has no"):
        convert_encoder_state(state, config)


def test_wrong_shapes_are_named(tmp_path):
    names = foreign_names(ZYX, "centerpoint")
    state = {
        f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v
        for n, v in build_encoder(ZYX).state_dict().items()
    }
    state["conv2.0.weight"] = torch.zeros(8, 3, 3, 5, 4)
    with pytest.raises(CheckpointError, match=r"conv2\.0\.weight"):
        convert_encoder_state(state, ZYX)
    with pytest.raises(CheckpointError, match="conv_input"):
        convert_encoder_state({}, ZYX)
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot read"):
        convert_encoder_checkpoint(tmp_path / "bad.pth", tmp_path / "out", ZYX)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="state dict, got list"):
        convert_encoder_checkpoint(tmp_path / "list.pth", tmp_path / "out", ZYX)


def test_configs_and_folders(tmp_path):
    assert len(list_encoders()) == 2
    for name in list_encoders():
        config = encoder_config(name)
        assert SparseEncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="did you mean"):
        encoder_config("nusc_centerpoint_voxelnet")
    encoder = build_encoder(XYZ)
    again = load_encoder(save_encoder(encoder, tmp_path / "a"))
    assert again.config == XYZ and not again.training
    (tmp_path / "a" / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError):
        load_encoder(tmp_path / "a")


@pytest.mark.parametrize("order", ["zyx", "xyz"])
def test_voxelizer(order):
    config = VoxelizerConfig(max_points=2, max_voxels=3, index_order=order)
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.rand(50, 5, generator=generator) * 0.4 for _ in range(2)]
    batch = Voxelizer(config)(clouds)
    assert batch.batch_size == 2 and batch.indices.shape == (6, 4)
    assert batch.indices[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.refused_voxels > 0 and int(batch.kept.max()) == 2
    z = batch.indices[:, 1 if order == "zyx" else 3]
    assert torch.all((z == 25) | (z == 26))
    with pytest.raises(InvalidInputError, match="list"):
        Voxelizer(config)(clouds[0])
