"""VoVNet-99 and EVA02-L against timm, with the same random weights.

    python benchmarks/timm_parity.py [--device cuda] [--small]

Then the tiny detector is built on other models of timm, and goes through backward and a checkpoint.

Needs timm. Weights are drawn in timm's model and read into ours by the loader for timm's names.
timm has no window attention, so EVA-02 is compared with every block looking at the whole image
(the tests compare window attention with its definition).
"""

from __future__ import annotations

import argparse
import tempfile
import time

import timm
import torch
from timm.models.eva import Eva as TimmEva
from torch import nn

import s4d_core
from s4d_core import TimmConfig
from s4d_core.backbones import EvaConfig, VoVNetConfig, build_backbone, load_weights

NAMES = ("resnet18", "convnext_tiny", "efficientnet_b0", "regnety_008")


def randomise(model: nn.Module) -> None:
    """Values for all that is zero or one in a fresh model."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
        elif value.is_floating_point() and value.dim() <= 1:
            value.add_(torch.randn_like(value) * 0.1)


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Running statistics of BatchNorm as `images` have them, so that values stay moderate."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)


def compare(name: str, ours: nn.Module, theirs: nn.Module, images: torch.Tensor) -> None:
    """Print the largest difference of each map, and relative to the map's largest value."""
    with torch.no_grad():
        start = time.perf_counter()
        mine, expected = ours(images), theirs(images)
        seconds = time.perf_counter() - start
    for i, (a, b) in enumerate(zip(mine, expected, strict=True)):
        largest = (a - b).abs().max().item()
        scale = b.abs().max().item()
        print(
            f"{name} {images.dtype} output {i} {tuple(b.shape)}: {largest:.2e} absolute, "
            f"{largest / scale:.2e} of {scale:.3g} ({seconds:.1f} s)",
            flush=True,
        )


def detector(name: str, device: str) -> None:
    """The tiny detector on a model of timm: maps, gradients, a checkpoint there and back."""
    backbone = TimmConfig(name, out_indices=(1, 2, 3) if "res" not in name else (2, 3, 4))
    config = s4d_core.get_config("sparse4dv3_tiny").replace(
        backbone=backbone, neck=s4d_core.FPNConfig(num_levels=4), name=f"tiny_{name}"
    )
    model = s4d_core.build_model(config).to(device)
    height, width = config.image.size
    cameras = config.num_cameras
    images = torch.randn(1, cameras, 3, height, width, device=device)
    levels = model.pyramid(images)
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    missing = [n for n, p in model.backbone.named_parameters() if p.grad is None]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        s4d_core.save_checkpoint(model, folder)
        again = s4d_core.load_checkpoint(folder).to(device)
        expected = model.eval().pyramid(images)
        same = all(torch.equal(a, b) for a, b in zip(again.pyramid(images), expected, strict=True))
    sizes = [tuple(level.shape[1:]) for level in levels]
    print(f"timm/{name}: maps {sizes}, without gradient {len(missing)}, checkpoint equal {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small images and few blocks")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    size = (64, 96) if args.small else (320, 800)

    with torch.device(args.device):
        theirs = timm.create_model("ese_vovnet99b", features_only=True, out_indices=(1, 2, 3, 4))
        config = VoVNetConfig(attention="last")
        ours = build_backbone(config)
        images = torch.randn(2, 3, *size)
    randomise(theirs)
    settle(theirs, images)
    weights = {n.replace("stages_", "stages."): v for n, v in theirs.state_dict().items()}
    weights = {n.replace("stem_", "stem."): v for n, v in weights.items()}
    print(load_weights(ours, config, weights, "timm"))
    for dtype in (torch.float32, torch.float64):
        ours, theirs = (m.to(args.device, dtype).eval() for m in (ours, theirs))
        compare("VoVNet-99", ours, theirs, images.to(args.device, dtype))

    depth = 3 if args.small else 24
    config = EvaConfig(
        depth=depth,
        global_blocks=tuple(range(depth)),
        position_grid=(size[0] // 16, size[1] // 16),
        pyramid_channels=None,
    )
    with torch.device(args.device):
        plain = TimmEva(
            img_size=size,
            patch_size=16,
            embed_dim=1024,
            depth=depth,
            num_heads=16,
            qkv_fused=False,
            mlp_ratio=4 * 2 / 3,
            swiglu_mlp=True,
            scale_mlp=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(16, 16),
            class_token=False,
            global_pool="",
            num_classes=0,
        )
        ours = build_backbone(config)
    randomise(plain)
    print(load_weights(ours, config, plain.state_dict(), "timm"))

    class LastMap(nn.Module):
        """timm's last block as a map, before its final norm."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return self.model.forward_intermediates(x, indices=1, intermediates_only=True)

    last = LastMap(plain)
    for dtype in (torch.float32, torch.float64):
        ours, last = (m.to(args.device, dtype).eval() for m in (ours, last))
        compare("EVA02-L", ours, last, images.to(args.device, dtype))
    del ours, last, plain, theirs
    for name in NAMES:
        detector(name, args.device)


if __name__ == "__main__":
    main()
