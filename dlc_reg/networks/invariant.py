"""Point features that a rigid motion does not change: local shape, then context by attention to anchor points.

Local: neighbours at two scales, described by lengths and by products of normals in which every normal occurs an even
number of times, so that its sign, which a cloud without viewpoint does not tell, drops out. Context: a point attends
to some hundred anchors of its own cloud, and to those of the other cloud.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.networks.neighbours import ABSENT, check_counts, gather

NEAR, FAR = 16, 20  # neighbours among all points, and among every fifth
FAR_STEP = 5
NORMAL_NEIGHBOURS = 20
EDGE_FEATURES, POINT_FEATURES = 8, 6


class Shape(NamedTuple):
    """What a batch of clouds looks like locally; no gradient flows here."""

    edges: Tensor  # (B, N, K, EDGE_FEATURES)
    points: Tensor  # (B, N, POINT_FEATURES)
    normals: Tensor  # (B, N, 3), of any sign
    anchors: Tensor  # (B, A) rows of the anchors
    anchor_mask: Tensor  # (B, A)


class InvariantEncoder(nn.Module):
    """Clouds (B, N, 3) and (B, M, 3), about two wide -> features (B, N, out), (B, M, out), of unit length, and logits
    (B, N), (B, M) of how likely the point has a counterpart."""

    def __init__(self, width: int = 96, out: int = 64, heads: int = 4, blocks: int = 2, anchors: int = 128) -> None:
        super().__init__()
        check_counts(width=width, out=out, heads=heads, anchors=anchors)
        if width % heads or blocks < 0:
            raise InputError(
                "width, heads, blocks", f"{width}, {heads}, {blocks}", "heads that divide width, 0 or more blocks"
            )
        self.anchors = anchors
        self.edge = nn.Sequential(nn.Linear(EDGE_FEATURES, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.point = nn.Sequential(nn.Linear(2 * 64 + POINT_FEATURES, width), nn.ReLU(), nn.Linear(width, width))
        self.own = nn.ModuleList(AnchorAttention(width, heads, own=True) for _ in range(blocks + 1))
        self.other = nn.ModuleList(AnchorAttention(width, heads, own=False) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out + 1)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clouds = (source, target)
        shapes = [describe(c, m, self.anchors) for c, m in zip(clouds, (source_mask, target_mask), strict=True)]
        x = [self._local(s) for s in shapes]
        for block, own in enumerate(self.own):
            x = [own(f, gather(f, s.anchors), s, c) for f, s, c in zip(x, shapes, clouds, strict=True)]
            if block < len(self.other):
                at = [gather(f, s.anchors) for f, s in zip(x, shapes, strict=True)]
                other = self.other[block]
                x = [other(x[i], at[1 - i], shapes[1 - i]) for i in (0, 1)]
        (a, a_logit), (b, b_logit) = (self._out(f) for f in x)
        return a, b, a_logit, b_logit

    def _local(self, shape: Shape) -> Tensor:
        edges = self.edge(shape.edges)
        pooled = torch.cat([edges[:, :, :NEAR].mean(2), edges[:, :, NEAR:].mean(2), shape.points], dim=-1)
        x: Tensor = self.point(pooled)
        return x

    def _out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.norm(x))
        return functional.normalize(out[..., :-1], dim=-1), out[..., -1]


class AnchorAttention(nn.Module):
    """A pre-norm transformer block from all points to anchors.

    Within one cloud (`own`) each head adds -8 (d - r)^2 to its logits for the distance d, a preference for points about
    r away, and yields the mean offset of what it looks at as well: a vector that turns with the cloud. The vectors'
    products do not turn; their determinants tell a shape from its mirror image, which distances cannot.
    """

    radii: Tensor

    def __init__(self, width: int, heads: int, *, own: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.norm, self.norm_anchor, self.norm_hidden = (nn.LayerNorm(width) for _ in range(3))
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.offsets: nn.Linear | None = None
        if own:
            self.register_buffer("radii", torch.linspace(0.0, 1.2, heads), persistent=False)
            pairs, triples = heads * (heads + 1) // 2, math.comb(heads, 3)
            self.offsets = nn.Linear(2 * pairs + triples, width)

    def forward(self, x: Tensor, anchors: Tensor, shape: Shape, points: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape
        size = width // self.heads
        q = self.query(self.norm(x)).view(batch, count, self.heads, size).transpose(1, 2)
        k, v = self.key_value(self.norm_anchor(anchors)).view(batch, -1, 2, self.heads, size).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        bias = torch.where(shape.anchor_mask, 0.0, ABSENT)[:, None, None, :].to(x.dtype)
        if self.offsets is None or points is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + self.merge(mixed.transpose(1, 2).reshape(batch, count, width))
        else:
            at = gather(points, shape.anchors)
            bias = bias - 8 * (torch.cdist(points, at)[:, None] - self.radii[:, None, None]).square()
            v = torch.cat([v, at[:, None].expand(-1, self.heads, -1, -1)], dim=-1)
            q, k = functional.pad(q, (0, 3)), functional.pad(k, (0, 3))  # kernels want heads of one size
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=size**-0.5).transpose(1, 2)
            vectors = mixed[..., size:] - points[:, :, None]
            x = x + self.merge(mixed[..., :size].reshape(batch, count, width))
            x = x + self.offsets(invariants(vectors, shape.normals))
        out: Tensor = x + self.hidden(self.norm_hidden(x))
        return out


def invariants(vectors: Tensor, normals: Tensor) -> Tensor:
    """Of vectors (..., H, 3) at points with normals (..., 3) of any sign: the products of every two, those of their
    components along the normal, and the determinants of every three, (..., H (H + 1) + H choose 3)."""
    heads = vectors.shape[-2]
    along = (vectors @ normals[..., None])[..., 0]
    i, j = torch.triu_indices(heads, heads, device=vectors.device)
    products = [(vectors[..., i, :] * vectors[..., j, :]).sum(-1), along[..., i] * along[..., j]]
    a, b, c = torch.combinations(torch.arange(heads, device=vectors.device), 3).T
    determinants = (torch.linalg.cross(vectors[..., a, :], vectors[..., b, :]) * vectors[..., c, :]).sum(-1)
    return torch.cat([*products, 4 * determinants], dim=-1)


@torch.no_grad()
def describe(points: Tensor, mask: Tensor | None, anchors: int) -> Shape:
    """Local shape of a batch of clouds (B, N, 3); padding gets zeros."""
    batch, count = points.shape[:2]
    real = torch.ones(batch, count, dtype=torch.bool, device=points.device) if mask is None else mask
    neighbours = torch.zeros(batch, count, NEAR + FAR, dtype=torch.long)
    normals = torch.zeros(batch, count, 3, dtype=torch.float32)
    anchor_rows, anchor_mask = (torch.zeros(batch, anchors, dtype=kind) for kind in (torch.long, torch.bool))
    for b, cloud in enumerate(points.detach().float().cpu()):
        rows = real[b].cpu().nonzero()[:, 0]
        near, normals[b, rows], order = _neighbourhoods(cloud[rows])
        neighbours[b, rows] = rows[near]
        chosen = rows[order[torch.linspace(0, len(rows) - 1, min(anchors, len(rows))).round().long()]]
        anchor_rows[b, : len(chosen)], anchor_mask[b, : len(chosen)] = chosen, True
    device = points.device
    edges, features = _products(points, neighbours.to(device), normals.to(points))
    edges, features = edges * real[..., None, None], features * real[..., None]
    return Shape(edges, features, normals.to(points), anchor_rows.to(device), anchor_mask.to(device))


def _neighbourhoods(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one cloud (N, 3): neighbours (N, NEAR + FAR), normals (N, 3) and the Morton order (N,)."""
    count = len(points)
    index, order = ops.SearchIndex(points), ops.morton_order(points).long()
    few = order[::FAR_STEP]
    near = index.knn(points, min(NEAR + 1, count))[1][:, 1:].long()
    far = few[ops.knn(points, points[few], min(FAR, len(few)))[1].long()]
    normals = ops.estimate_normals(index, k=min(NORMAL_NEIGHBOURS, count))
    return torch.cat([_padded(near, NEAR), _padded(far, FAR)], dim=1), normals, order


def _products(points: Tensor, neighbours: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Edge features (B, N, K, EDGE_FEATURES) and point features (B, N, POINT_FEATURES)."""
    offset = gather(points, neighbours) - points[:, :, None]
    length = offset.norm(dim=-1)
    direction = offset / length.clamp(min=1e-9)[..., None]
    n_i, n_j = normals[:, :, None], gather(normals, neighbours)
    near, far = offset[:, :, :NEAR].mean(2), offset[:, :, NEAR:].mean(2)
    reach_near, reach_far = (part.mean(2).clamp(min=1e-9) for part in (length[:, :, :NEAR], length[:, :, NEAR:]))
    bend = 4 * (normals * far).sum(-1) / reach_far  # to which side the surface bends, times the normal's sign
    bend_near = (normals * near).sum(-1) / reach_near
    bend_i, bend_j = bend[:, :, None], gather(bend[..., None], neighbours)[..., 0]
    along_i, along_j, turn = (n_i * direction).sum(-1), (n_j * direction).sum(-1), (n_i * n_j).sum(-1)
    edges = [
        length, along_i.square(), along_j.square(), turn.square(), along_i * along_j * turn,
        bend_i * along_i, bend_j * along_j, bend_i * bend_j * turn / 4,
    ]  # fmt: skip
    features = [
        reach_near, reach_far, near.norm(dim=-1) / reach_near, far.norm(dim=-1) / reach_far, bend.abs(),
        bend * bend_near,
    ]  # fmt: skip
    return torch.stack(edges, -1), torch.stack(features, -1)


def _padded(rows: Tensor, count: int) -> Tensor:
    """rows (N, k) -> (N, count), the last one repeated in clouds of too few points."""
    return torch.cat([rows, rows[:, -1:].expand(-1, count - rows.shape[1])], dim=1)
