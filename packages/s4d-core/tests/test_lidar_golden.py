"""The encoder against the golden small network: layers, gradients, folding."""

import numpy as np
import pytest
import torch
from golden_lidar import golden, golden_rules
from lidar_golden import SMALL, golden_encoder

from s4d_core.lidar import SparseTensor, fold_batchnorm
from s4d_core.lidar.convert import foreign_names
from s4d_core.lidar.encoder import ConvBlock, ResidualBlock

OURS = {theirs: ours for ours, theirs in foreign_names(SMALL, "centerpoint").items()}


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run(encoder, data, dtype, device="cpu"):
    """Dense output, sparse outputs, input features, and every block's output by golden name."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    encoder.to(device)
    features = torch.from_numpy(data["in/feat"]).to(device, dtype).requires_grad_()
    seen: dict[str, SparseTensor] = {}
    theirs = foreign_names(SMALL, "centerpoint")
    handles = []
    for name, module in encoder.named_modules():
        if isinstance(module, ConvBlock):
            label = theirs[f"{name}.conv"]
        elif isinstance(module, ResidualBlock):
            label = theirs[f"{name}.conv2"][: -len(".conv2")]
        else:
            continue
        handles.append(
            module.register_forward_hook(
                lambda _module, _inputs, out, label=label: seen.__setitem__(label, out)
            )
        )
    x = SparseTensor(features, torch.from_numpy(data["in/idx"]).to(device), SMALL.grid_shape, 2)
    dense = encoder.to_bev(encoder.encode(x)[-1])
    for handle in handles:
        handle.remove()
    return dense, features, seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_layers(dtype, limit, device):
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    dense, _, seen = run(golden_encoder(SMALL, dtype), data, dtype, device)
    stages = {"conv_input.0": "stage1", "extra_conv.0": "extra"}
    compared = 0
    for label, x in seen.items():
        stage = stages.get(label, f"stage{label[4]}")
        rows = x.indices.cpu().numpy()
        order = rules.sort_rows(rows)
        np.testing.assert_array_equal(rows[order], data[f"idx/{stage}"])
        assert x.grid_shape == tuple(data[f"shape/{stage}"])
        want = data[f"feat/{label}"]
        got = x.features.detach().cpu().numpy()[order]
        rounding = 1e-7 if want.dtype == np.float32 else 0.0
        assert np.abs(got - want).max() <= (limit + rounding) * max(np.abs(want).max(), 1.0), label
        compared += 1
    assert compared == 13
    np.testing.assert_allclose(dense.detach().cpu().numpy(), data["dense"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradients(dtype, limit, device):
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    encoder = golden_encoder(SMALL, dtype)
    dense, features, _ = run(encoder, data, dtype, device)
    weights = torch.from_numpy(rules.rng("small/loss").standard_normal(tuple(dense.shape)))
    loss = (weights.to(device, dtype) * dense).sum()
    np.testing.assert_allclose(loss.item(), data["loss"], rtol=1e-5 if limit > 1e-9 else 1e-12)
    loss.backward()
    parameters = dict(encoder.named_parameters())

    def check(got, want):
        assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want)

    assert features.grad is not None
    check(features.grad.cpu().numpy(), data["grad/in"])
    names = [name for name in data.files if name.startswith("grad/") and name != "grad/in"]
    assert len(names) == 9
    for name in names:
        module, _, leaf = name.removeprefix("grad/").rpartition(".")
        check(parameters[f"{OURS[module]}.{leaf}"].grad.cpu().numpy(), data[name])


def test_folding():
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    encoder = golden_encoder(SMALL, torch.float64)
    folded = fold_batchnorm(encoder)
    dense, features, _ = run(folded, data, torch.float64)
    want, plain, _ = run(encoder, data, torch.float64)
    torch.testing.assert_close(dense, want, rtol=0, atol=1e-13)
    weights = torch.from_numpy(rules.rng("small/loss").standard_normal(tuple(dense.shape)))
    (weights * dense).sum().backward()
    (weights * want).sum().backward()
    torch.testing.assert_close(features.grad, plain.grad, rtol=0, atol=1e-12)
    modules = dict(folded.named_modules())
    names = {
        n.split("/")[1] for n in data.files if n.startswith("folded/") and n.endswith("/weight")
    }
    assert len(names) == 4
    for name in names:
        conv = modules[OURS[name]]
        for leaf, value in (("weight", conv.weight), ("bias", conv.bias)):
            expected = data[f"folded/{name}/{leaf}"]
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=1e-12)
            gradient = data[f"folded/{name}/grad_{leaf}"]
            np.testing.assert_allclose(value.grad.numpy(), gradient, rtol=1e-11, atol=1e-11)
    again = fold_batchnorm(folded)
    for a, b in zip(folded.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_half_on_cuda():
    """The folded network in half: sites equal, features and gradients within half's limits."""
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    encoder = fold_batchnorm(golden_encoder(SMALL, torch.float64)).half()
    dense, features, _ = run(encoder, data, torch.float16, "cuda")
    assert dense.dtype == torch.float16

    def relative(value, want):
        return np.linalg.norm(value.detach().cpu().double().numpy() - want) / np.linalg.norm(want)

    assert relative(dense, data["dense"]) <= 3e-3
    weights = torch.from_numpy(rules.rng("small/loss").standard_normal(tuple(dense.shape))).cuda()
    (weights * dense).sum().backward()
    # Rounding moves some values over the kinks of 21 ReLUs; the operator's own gradients are
    # checked to 2e-3 in s4d-ops.
    assert relative(features.grad, data["grad/in"]) <= 0.1


@pytest.mark.gpu
def test_training_step_on_cuda():
    """Batch normalisation in training mode, mixed precision: near the CPU in double precision."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data = golden("golden_scn_small.npz")
    features, rows = torch.from_numpy(data["in/feat"]), torch.from_numpy(data["in/idx"])
    gradients = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32), ("cuda", torch.float16)):
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        encoder = golden_encoder(SMALL, weights).to(device).train()
        given = features.to(device, weights)
        with torch.autocast("cuda", torch.float16, enabled=dtype == torch.float16):
            out = encoder(given.to(dtype), rows.to(device), 2)
        (out.double() ** 2).mean().backward()
        assert all(p.grad is not None and p.grad.dtype == weights for p in encoder.parameters())
        gradients.append(torch.cat([p.grad.double().cpu().flatten() for p in encoder.parameters()]))
    want = gradients[0]
    for found, limit in zip(gradients[1:], (1e-4, 5e-2), strict=True):
        assert (found - want).norm() <= limit * want.norm()
