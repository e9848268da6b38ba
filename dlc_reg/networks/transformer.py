"""DCP's co-attention (Wang and Solomon, ICCV 2019): each cloud's features learn of the other cloud's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.errors import InputError


class CoAttention(nn.Module):
    """Features (B, N, C), (B, M, C) -> the same, each with what a transformer makes of it and the other one added.

    Phi_X = F_X + phi(F_Y, F_X): an encoder looks at the other cloud's features, a decoder at one's own and at those
    (Vaswani et al., 2017, with the normalisation before each part).
    """

    def __init__(self, width: int = 512, heads: int = 4, hidden: int = 1024, blocks: int = 1) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Block(width, heads, hidden, cross=False) for _ in range(blocks))
        self.decoder = nn.ModuleList(Block(width, heads, hidden, cross=True) for _ in range(blocks))
        self.norm_memory, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return x + self._decoded(x, y, x_mask, y_mask), y + self._decoded(y, x, y_mask, x_mask)

    def _decoded(self, x: Tensor, other: Tensor, mask: Tensor | None, other_mask: Tensor | None) -> Tensor:
        for block in self.encoder:
            other = block(other, other_mask)
        memory = self.norm_memory(other)
        for block in self.decoder:
            x = block(x, mask, memory, other_mask)
        out: Tensor = self.norm(x)
        return out


class Block(nn.Module):
    """Attention within a cloud, with `cross` to another one's, then a small network for each point."""

    def __init__(self, width: int, heads: int, hidden: int, *, cross: bool) -> None:
        super().__init__()
        self.own = Attention(width, heads)
        self.other = Attention(width, heads) if cross else None
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.own(x, None, mask)
        if self.other is not None:
            x = x + self.other(x, memory, memory_mask)
        out: Tensor = x + self.hidden(x)
        return out


class Attention(nn.Module):
    """Of several heads, from `x` (B, N, C) to `memory` (B, M, C) where its mask (B, M) is True; None: to `x` itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError("heads", str(heads), f"a divisor of the width, {width}")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.norm(x)
        q = self._split(self.query(x))
        k, v = (self._split(part) for part in self.key_value(x if memory is None else memory).chunk(2, dim=-1))
        seen = None if mask is None else mask[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.merge(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)
