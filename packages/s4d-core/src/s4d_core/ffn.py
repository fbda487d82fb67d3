"""The feed-forward networks between aggregation and refinement."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FFN", "AsymmetricFFN"]


class AsymmetricFFN(nn.Module):
    """LayerNorm, then a two-layer network plus a linear shortcut to fewer channels.

    Input and output widths differ (REFERENCE B5.5): the input is [aggregated | instance feature].
    """

    def __init__(self, in_dims: int, hidden_dims: int, out_dims: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dims)
        self.expand = nn.Linear(in_dims, hidden_dims)
        self.reduce = nn.Linear(hidden_dims, out_dims)
        self.shortcut = nn.Linear(in_dims, out_dims)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, in_dims) to (B, A, out_dims)."""
        x = self.norm(x)
        hidden = self.dropout(self.relu(self.expand(x)))
        return self.shortcut(x) + self.dropout(self.reduce(hidden))


class FFN(nn.Module):
    """A two-layer network whose result is added to its input (REFERENCE C3)."""

    def __init__(self, dims: int, hidden_dims: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dims, hidden_dims)
        self.reduce = nn.Linear(hidden_dims, dims)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims) to (..., dims)."""
        hidden = self.dropout(self.relu(self.expand(x)))
        return x + self.dropout(self.reduce(hidden))
