"""VoVNet-99 and EVA02-L against timm, with the same random weights.

    python benchmarks/timm_parity.py [--device cuda] [--small]

Needs timm. Weights are drawn in timm's model and read into ours by the loader for timm's names.
timm has no window attention, so EVA-02 is compared with every block looking at the whole image
(the tests compare window attention with its definition).
"""

from __future__ import annotations

import argparse
import time

import timm
import torch
from timm.models.eva import Eva as TimmEva
from torch import nn

from s4d_core.backbones import EvaConfig, VoVNetConfig, build_backbone, load_weights


def randomise(model: nn.Module) -> None:
    """Values for all that is zero or one in a fresh model."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point() and value.dim() <= 1:
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small images and few blocks")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    size = (64, 96) if args.small else (320, 800)

    theirs = timm.create_model("ese_vovnet99b", features_only=True, out_indices=(1, 2, 3, 4))
    config = VoVNetConfig(attention="last")
    ours = build_backbone(config)
    randomise(theirs)
    images = torch.randn(2, 3, *size)
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
    randomise(plain)
    ours = build_backbone(config)
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


if __name__ == "__main__":
    main()
