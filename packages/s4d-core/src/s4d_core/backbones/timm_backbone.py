"""Any feature-extracting model of timm (extra `s4d-core[timm]`)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Backbone
from .config import TimmConfig
from .timm_models import create

__all__ = ["TimmBackbone"]


class TimmBackbone(Backbone):
    """A model of timm with its maps as they come, (K, C_i, H_i, W_i)."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.network = create(config.name, config.out_indices)
        if config.checkpointing:
            self.network.set_grad_checkpointing(True)  # type: ignore[operator]
        self.fix([], config.norm_eval)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images."""
        return list(self.network(images))

    def init_weights(self) -> None:
        """timm's own initialisation, or its published weights where `pretrained` says so."""
        if self.config.pretrained:
            self.network.load_state_dict(
                create(self.config.name, self.config.out_indices, pretrained=True).state_dict()
            )

    def make_tables(self, image_size: tuple[int, int]) -> None:
        # Built without values (a checkpoint follows), constants that are no weights are missing.
        weights = self.network.state_dict()
        lost = [n for n, b in self.network.named_buffers() if b.is_meta and n not in weights]
        if lost and not torch.empty(0).is_meta:
            fresh = create(self.config.name, self.config.out_indices)
            for name in lost:
                owner, _, attribute = name.rpartition(".")
                setattr(self.network.get_submodule(owner), attribute, fresh.get_buffer(name))
