"""What the operators of the global search compute, in plain torch: dense, slow, readable.

The native operators are tested against these. They take any floating-point dtype and are meant for float64; the native
ones work in float32, so that a value on the edge of a bin, a cell or a limit may fall on its other side there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 11  # of each of a descriptor's three histograms
AZIMUTHS, ELEVATIONS, SHELLS, COSINES, SIGN_FREE_COSINES = 8, 2, 2, 11, 6
FEWEST_NEIGHBOURS = 4  # of a signature
ROUND = 32  # seeds grown before what they explain is taken out
WELL_SUPPORTED = 60  # matches that a pose must explain for its seeds to be taken out
MAX_CELLS = 2**24


def fpfh(points: Tensor, normals: Tensor, radius: float, *, oriented: bool = False) -> Tensor:
    """Descriptors (N, 33) of points and normals (N, 3): Rusu et al., ICRA 2009; sign-free unless `oriented`."""
    offset = points[None] - points[:, None]  # (i, j): from i to j
    squared = offset.square().sum(-1)
    near = (squared < radius**2) & ~torch.eye(len(points), dtype=torch.bool)
    features, defined = pair_features(offset, normals[:, None].expand_as(offset), normals[None], oriented)
    own = torch.zeros(len(points), 3, BINS, dtype=points.dtype)
    for histogram, values in enumerate(features.unbind(-1)):
        bins = (BINS * values).floor().long().clamp(0, BINS - 1)
        counts = (F.one_hot(bins, BINS) * (near & defined)[..., None]).sum(1)
        own[:, histogram] = 100 * counts / near.sum(1).clamp(min=1)[:, None]

    weights = torch.where(near & (squared > 0), 1 / squared, 0.0)
    opposed = normals @ normals.T < 0 if not oriented else torch.zeros_like(near)
    others = torch.einsum("ij,jhb->ihb", torch.where(opposed, 0.0, weights), own)
    others += torch.einsum("ij,jhb->ihb", torch.where(opposed, weights, 0.0), mirrored(own))
    others = 100 * torch.nan_to_num(others / others.sum(-1, keepdim=True))
    total = own + others
    if not oriented:  # the normal that points to where the neighbours lie
        side = (torch.where(near[..., None], offset, 0.0).sum(1) * normals).sum(1)
        total = torch.where((side < 0)[:, None, None], mirrored(total), total)
    return total.reshape(len(points), 3 * BINS)


def signatures(points: Tensor, normals: Tensor, radius: float, *, oriented: bool = False) -> Tensor:
    """Signatures (N, 352 or 192) of points, normals (N, 3): Tombari et al., ECCV 2010; sign-free unless `oriented`."""
    offset = (points[None] - points[:, None]) / radius  # (i, j): from i to j
    distance = offset.norm(dim=-1)
    near = (distance < 1) & (distance > 0)
    weight = torch.where(near, 1 - distance, 0.0)
    z = normals
    if not oriented:
        lean = torch.einsum("ij,ijc->ic", weight, offset)
        z = torch.where((lean * z).sum(-1, keepdim=True) < 0, -z, z)
    height = torch.einsum("ijc,ic->ij", offset, z)
    across = offset - height[..., None] * z[:, None]
    x = F.normalize(torch.einsum("ij,ijc->ic", (weight * height).square(), across), dim=-1, eps=0.0)
    y = torch.linalg.cross(z, x)
    azimuth = torch.atan2(torch.einsum("ijc,ic->ij", offset, y), torch.einsum("ijc,ic->ij", offset, x))
    cosine = z @ normals.mT
    cosines = COSINES if oriented else SIGN_FREE_COSINES
    shares = [
        shared(azimuth / (2 * math.pi) * AZIMUTHS, AZIMUTHS, around=True),
        shared((height / distance + 1) / 2 * ELEVATIONS, ELEVATIONS),
        shared(distance * SHELLS, SHELLS),
        shared(((cosine if oriented else 2 * cosine.abs() - 1) + 1) / 2 * cosines, cosines),
    ]
    counted = torch.einsum("ij,ija,ije,ijs,ijc->iaesc", near.to(points.dtype), *map(torch.nan_to_num, shares))
    rows = torch.nan_to_num(F.normalize(counted.flatten(1), dim=-1))
    flat = x.isnan().any(-1) | (near.sum(1) < FEWEST_NEIGHBOURS)
    return torch.where(flat[:, None], 0.0, rows)


def shared(at: Tensor, bins: int, *, around: bool = False) -> Tensor:
    """Shares (..., bins) of values that lie at `at` bins from the first edge: linear between the centres."""
    centers = torch.arange(bins, dtype=at.dtype) + 0.5
    if around:
        apart = (at[..., None] - centers).remainder(bins)
        return (1 - torch.minimum(apart, bins - apart)).clamp(min=0)
    return (1 - (at.clamp(0.5, bins - 0.5)[..., None] - centers).abs()).clamp(min=0)


def pair_features(offset: Tensor, n1: Tensor, n2: Tensor, oriented: bool) -> tuple[Tensor, Tensor]:
    """Darboux angles (..., 3) of pairs, each scaled to [0, 1], and where they are defined (...).

    The frame stands on the point whose normal is closer to the line between the two: u its normal, v across the line,
    w = u x v. The angles are theta = atan2(w.m, u.m), alpha = v.m and phi = u.d, m the other normal, d the line.
    """
    length = offset.norm(dim=-1, keepdim=True)
    d = offset / length
    if not oriented:
        n2 = torch.where((n1 * n2).sum(-1, keepdim=True) < 0, -n2, n2)
    swapped = (n1 * d).sum(-1, keepdim=True).abs() < (n2 * d).sum(-1, keepdim=True).abs()
    u, m, d = torch.where(swapped, n2, n1), torch.where(swapped, n1, n2), torch.where(swapped, -d, d)
    across = torch.linalg.cross(d, u)
    v = across / across.norm(dim=-1, keepdim=True)
    w = torch.linalg.cross(u, v)
    theta = torch.atan2((w * m).sum(-1), (u * m).sum(-1))
    span = 2 * math.pi if oriented else math.pi
    features = torch.stack([theta / span + 0.5, ((v * m).sum(-1) + 1) / 2, ((u * d).sum(-1) + 1) / 2], -1)
    defined = (length[..., 0] > 0) & (across.norm(dim=-1) > 0)
    return torch.where(defined[..., None], features, 0.0), defined


def mirrored(histograms: Tensor) -> Tensor:
    """Histograms (..., 3, BINS) as they are when all normals turn: theta and phi change sign, alpha does not."""
    theta, alpha, phi = histograms.unbind(-2)
    return torch.stack([theta.flip(-1), alpha, phi.flip(-1)], -2)


def nearest_features(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of the nearest row of b (M, D) to each row of a (N, D), lowest first, and the squared distance."""
    squared = (a[:, None] - b[None]).square().sum(-1)
    indices = squared.argmin(1)
    return indices, squared.gather(1, indices[:, None])[:, 0]


def mutual_matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (K, 2) that are each other's nearest, by a's index, and their squared distances (K,)."""
    (forward, squared), (backward, _) = nearest_features(a, b), nearest_features(b, a)
    pairs = [(i, j) for i, j in enumerate(forward.tolist()) if backward[j] == i]
    return torch.tensor(pairs).reshape(-1, 2), squared[[i for i, _ in pairs]]


def propose_poses(
    source: Tensor, target: Tensor, tolerance: float, *, max_seeds: int = 300, max_clique: int = 30
) -> tuple[Tensor, Tensor]:
    """Poses (K, 4, 4) from matches (N, 3), seeds of most triangles first, and the matches within `tolerance` (K,)."""
    apart_p, apart_q = (torch.linalg.vector_norm(x[:, None] - x[None], dim=-1) for x in (source, target))
    graph = (torch.minimum(apart_p, apart_q) > tolerance) & ((apart_p - apart_q).abs() < tolerance)
    edges = graph.double()
    triangles = (edges @ edges * edges).sum(1)

    seeds: list[int] = []
    for i in triangles.argsort(descending=True, stable=True).tolist():
        if len(seeds) == max_seeds or triangles[i] == 0:
            break
        if all(apart_p[i, s] >= tolerance for s in seeds):
            seeds.append(i)

    poses, support = [], []
    covered = torch.zeros(len(source), dtype=torch.bool)
    for start in range(0, len(seeds), ROUND):
        explained = []
        for seed in seeds[start : start + ROUND]:
            clique = [] if covered[seed] else grow_clique(graph, seed, max_clique)
            if len(clique) < 3:
                continue
            pose = fit(source[clique], target[clique])
            inside = supporters(source, target, pose, tolerance)
            if inside.sum() >= 3:
                again = fit(source[inside], target[inside])
                inside_again = supporters(source, target, again, tolerance)
                if inside_again.sum() >= inside.sum():
                    pose, inside = again, inside_again
            poses.append(pose)
            support.append(int(inside.sum()))
            if inside.sum() >= WELL_SUPPORTED:
                explained.append(inside)
        for inside in explained:
            covered |= inside
    return torch.stack(poses) if poses else source.new_zeros(0, 4, 4), torch.tensor(support, dtype=torch.int64)


def grow_clique(graph: Tensor, seed: int, max_clique: int) -> list[int]:
    """The seed, then again and again the candidate that leaves the most candidates (the first of several)."""
    clique, candidates = [seed], graph[seed]
    while len(clique) < max_clique and candidates.any():
        rows = candidates.nonzero()[:, 0]
        left = graph[rows][:, rows].sum(1)
        best = int(rows[left == left.max()][0])
        clique.append(best)
        candidates = candidates & graph[best]
    return clique


def fit(source: Tensor, target: Tensor) -> Tensor:
    """The rigid motion (4, 4) that brings source to target (N, 3) with least squares (Umeyama, PAMI 1991)."""
    p, q = source.mean(0), target.mean(0)
    u, _, vt = torch.linalg.svd((target - q).T @ (source - p))
    sign = torch.ones(3, dtype=source.dtype)
    sign[2] = torch.det(u @ vt).sign()
    pose = torch.eye(4, dtype=source.dtype)
    pose[:3, :3] = u @ torch.diag(sign) @ vt
    pose[:3, 3] = q - pose[:3, :3] @ p
    return pose


def supporters(source: Tensor, target: Tensor, pose: Tensor, tolerance: float) -> Tensor:
    """Which matches (N,) the pose brings within the tolerance."""
    inside: Tensor = torch.linalg.vector_norm(moved(pose, source) - target, dim=1) < tolerance
    return inside


def moved(pose: Tensor, points: Tensor) -> Tensor:
    q: Tensor = points @ pose[:3, :3].T + pose[:3, 3]
    return q


@dataclass(frozen=True)
class Surface:
    """Points and normals (N, 3); where the nearest are looked up on a grid, and what was seen from the eye (3,)."""

    points: Tensor
    normals: Tensor
    cell: float
    reach: float
    eye: Tensor | None = None
    bin_angle: float = 0.03

    @cached_property
    def low(self) -> Tensor:
        return self.points.amin(0) - self.reach

    @cached_property
    def size(self) -> float:
        """The edge of a cell: as given, but with at most MAX_CELLS in the grid."""
        size, extent = self.cell, self.points.amax(0) + self.reach - self.low
        while (torch.floor(extent / size) + 1).prod() > MAX_CELLS:
            size *= 1.25
        return size

    def nearest(self, query: Tensor) -> Tensor:
        """For each of (M, 3) the point nearest to the centre of the query's cell, of those at most `reach` (in whole
        cells) away; -1 where there is none."""
        cells, own = (torch.floor((x - self.low) / self.size) for x in (query, self.points))
        near = (cells[:, None] - own[None]).abs().amax(-1) <= math.ceil(self.reach / self.size)
        last = torch.floor((self.points.amax(0) + self.reach - self.low) / self.size)
        near &= ((cells >= 0) & (cells <= last)).all(1)[:, None]
        centers = self.low + (cells + 0.5) * self.size
        squared = (centers[:, None] - self.points[None]).square().sum(-1)
        return torch.where(near.any(1), torch.where(near, squared, math.inf).argmin(1), -1)

    @property
    def bins(self) -> int:
        """Along an edge of a face of the depth map's cube."""
        return max(1, math.ceil(math.pi / 2 / self.bin_angle))

    def locate(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The bin (M,) of each direction from the eye: 6 faces of bins x bins equal angles; and the depth (M,)."""
        assert self.eye is not None
        ray = query - self.eye
        axis = ray.abs().argmax(1)
        along = ray.gather(1, axis[:, None])[:, 0]
        index = 2 * axis + (along < 0)
        for turn in (1, 2):
            across = ray.gather(1, ((axis + turn) % 3)[:, None])[:, 0]
            angle = torch.atan(across / along.abs()) + math.pi / 4
            index = index * self.bins + (angle / (math.pi / 2) * self.bins).long().clamp(max=self.bins - 1)
        return index, ray.norm(dim=1)

    def clearance(self, query: Tensor) -> Tensor:
        """How far each of (M, 3) floats before what was seen in its direction; infinite where nothing was.

        What was seen is the least depth in the bin and its neighbours on the same face.
        """
        depths = torch.full((6 * self.bins**2,), math.inf, dtype=self.points.dtype)
        depths = depths.scatter_reduce(0, *self.locate(self.points), "amin")
        depths = -F.max_pool2d(-depths.reshape(6, 1, self.bins, self.bins), 3, stride=1, padding=1).flatten()
        index, depth = self.locate(query)
        return depths[index] - depth


def sampled(count: int, samples: int) -> Tensor:
    """Which of `count` points are looked at: at most `samples`, evenly along their order."""
    n = min(count, samples)
    return torch.arange(n) * count // n


def agree(a: Tensor, b: Tensor, cosine: float, oriented: bool) -> Tensor:
    c = (a * b).sum(-1)
    return (c if oriented else c.abs()) > cosine


def judge_poses(
    source: Surface,
    target: Surface,
    poses: Tensor,
    *,
    distance: float,
    normal_cosine: float,
    oriented: bool,
    free_margin: float,
    samples: int = 1000,
) -> Tensor:
    """(K, 4): overlap of source and of target, share of free-space violations (-1: unknown), closeness."""

    def one_way(moving: Surface, fixed: Surface, pose: Tensor) -> tuple[float, float, int, int]:
        chosen = sampled(len(moving.points), samples)
        q = moved(pose, moving.points[chosen])
        nearest = fixed.nearest(q)
        squared = (q - fixed.points[nearest]).square().sum(1)
        inside = (nearest >= 0) & (squared < distance**2)
        inside &= agree(moving.normals[chosen] @ pose[:3, :3].T, fixed.normals[nearest], normal_cosine, oriented)
        closeness = float((1 - squared[inside] / distance**2).mean()) if inside.any() else 0.0
        clear = fixed.clearance(q) if fixed.eye is not None else q.new_full((len(q),), math.inf)
        seen = clear.isfinite()
        return float(inside.double().mean()), closeness, int((clear[seen] > free_margin).sum()), int(seen.sum())

    rows = []
    for pose in poses:
        forward, backward = one_way(source, target, pose), one_way(target, source, torch.linalg.inv(pose))
        seen = forward[3] + backward[3]
        violations = (forward[2] + backward[2]) / seen if seen else -1.0
        rows.append([forward[0], backward[0], violations, (forward[1] + backward[1]) / 2])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def refine_poses(
    source: Surface,
    target: Surface,
    poses: Tensor,
    *,
    iterations: int,
    first_distance: float,
    last_distance: float,
    normal_cosine: float = 0.5,
    oriented: bool = False,
    samples: int = 1000,
) -> Tensor:
    """Point-to-plane ICP of poses (K, 4, 4), the limit shrinking geometrically; as given where fewer than 6 match."""
    chosen = sampled(len(source.points), samples)
    refined = poses.clone()
    for k, pose in enumerate(poses):
        for iteration in range(iterations):
            share = iteration / (iterations - 1) if iterations > 1 else 1.0
            limit = first_distance * (last_distance / first_distance) ** share
            q = moved(pose, source.points[chosen])
            nearest = target.nearest(q)
            f, m = target.points[nearest], target.normals[nearest]
            inside = (nearest >= 0) & ((q - f).norm(dim=1) < limit)
            inside &= agree(source.normals[chosen] @ pose[:3, :3].T, m, normal_cosine, oriented)
            if inside.sum() < 6:
                break
            q, f, m = q[inside], f[inside], m[inside]
            jacobian = torch.cat([torch.linalg.cross(q, m), m], 1)  # of m.(exp(xi) q - f), xi = (rotation, translation)
            hessian = jacobian.T @ jacobian
            damping = 1e-4 * torch.stack([hessian.diagonal()[:3].sum(), hessian.diagonal()[3:].sum()])
            hessian += torch.diag(damping.repeat_interleave(3))
            xi = torch.linalg.solve(hessian, -jacobian.T @ ((q - f) * m).sum(1))
            x, y, z, *shift = xi.tolist()
            twist = [[0.0, -z, y, shift[0]], [z, 0.0, -x, shift[1]], [-y, x, 0.0, shift[2]], [0.0] * 4]
            pose = torch.linalg.matrix_exp(torch.tensor(twist, dtype=pose.dtype)) @ pose
        else:
            refined[k] = pose
    return refined
