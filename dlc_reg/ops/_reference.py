"""What each operator computes, in plain torch: slow, readable, differentiable, in any floating-point dtype.

The native operators are tested against these, values and gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024  # queries compared with all points at a time


def knn(query: Tensor, points: Tensor, k: int = 1, max_distance: float = float("inf")) -> tuple[Tensor, Tensor]:
    """Distances (N, k) and indices (N, k) of the nearest of `points` (M, 3); equal squared distances by index."""
    distances = query.new_full((len(query), k), float("inf"))
    indices = torch.full((len(query), k), -1, dtype=torch.int64, device=query.device)
    width = min(k, len(points))
    nearest = []
    for start in range(0, len(query), CHUNK):
        squared, order = torch.sort(squared_distance(query[start : start + CHUNK, None], points[None]), stable=True)
        ordered, order = root(squared[:, :width]), order[:, :width]
        inside = ordered < max_distance
        nearest.append(torch.where(inside, ordered, float("inf")))
        indices[start : start + CHUNK, :width] = torch.where(inside, order, -1)
    if nearest:
        distances = torch.cat([torch.cat(nearest), distances[:, width:]], dim=1)
    return distances, indices


def radius_search(query: Tensor, points: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (T,) and indices (T,) of all points nearer than `radius`, and splits (N + 1,)."""
    distances, indices = knn(query, points, len(points), radius)
    found = indices >= 0
    splits = torch.cat([torch.zeros(1, dtype=torch.int64, device=query.device), found.sum(dim=1).cumsum(0)])
    return distances[found], indices[found], splits


def voxel_groups(points: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Means (M, 3) of the points in each voxel, in Morton order of the voxels, and the voxel (N,) of each point."""
    low = points.detach().double().amin(dim=0) - 0.5 * voxel_size
    cells = torch.floor((points.detach().double() - low) / voxel_size).long()
    code = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for bit in range(21):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    codes, inverse = torch.unique(code, sorted=True, return_inverse=True)
    total = points.new_zeros((len(codes), 3)).index_add(0, inverse, points)
    return total / torch.bincount(inverse)[:, None], inverse


def estimate_covariances(points: Tensor, k: int = 20, max_distance: float = float("inf")) -> Tensor:
    """Covariances (N, 3, 3) of the k nearest, squares divided by their number; zeros for fewer than 3 neighbours."""
    _, indices = knn(points, points, k, max_distance)
    found = (indices >= 0)[..., None]
    count = found.sum(dim=1, keepdim=True)
    near = points[indices.clamp(min=0)] * found
    centred = (near - near.sum(dim=1, keepdim=True) / count) * found
    covariances = centred.mT @ centred / count
    return torch.where(count >= 3, covariances, torch.zeros_like(covariances))


def estimate_normals(points: Tensor, k: int = 20, max_distance: float = float("inf")) -> Tensor:
    """Unit normals (N, 3), their largest component positive; (0, 0, 1) where there is no spread."""
    covariances = estimate_covariances(points, k, max_distance)
    normals = torch.linalg.eigh(covariances).eigenvectors[..., 0]
    largest = normals.gather(1, normals.abs().argmax(dim=1, keepdim=True))
    flat = covariances.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True) == 0
    return torch.where(flat, normals.new_tensor([0.0, 0.0, 1.0]), normals * largest.sign())


def intensity_gradients(
    points: Tensor, intensities: Tensor, normals: Tensor, k: int = 30, max_distance: float = float("inf")
) -> Tensor:
    """Intensities (N, 1) and their gradients along the tangent planes, (N, 4); zero for fewer than 4 neighbours.

    Least squares with one more row, (count - 1) normal . g = 0, the answer projected: so does Open3D 0.20.
    """
    _, indices = knn(points, points, k, max_distance)
    found = (indices >= 0)[..., None]
    ways = (points[indices.clamp(min=0)] - points[:, None]) * found
    changes = (intensities[indices.clamp(min=0)] - intensities[:, None]) * found
    count = found.sum(dim=1, keepdim=True)
    system = torch.cat([ways, (count - 1) * normals[:, None]], dim=1)
    right = torch.cat([changes, torch.zeros_like(changes[:, :1])], dim=1)
    gradients = (torch.linalg.pinv(system) @ right)[..., 0]
    gradients = gradients - (gradients * normals).sum(dim=1, keepdim=True) * normals
    return torch.cat([intensities, gradients * (count[:, 0] >= 4)], dim=1)


def robust_weight(kernel: str, k: float, r: Tensor) -> Tensor:
    """Weights rho'(r) / r of the kernels by Open3D's names and definitions."""
    size = r.abs()
    match kernel:
        case "l2":
            return torch.ones_like(r)
        case "l1":
            return 1 / size.clamp(min=1e-12)
        case "huber":
            return torch.where(size > k, k / size, 1.0)
        case "cauchy":
            return 1 / (1 + (r / k) ** 2)
        case "gm":
            return k / (k + r**2) ** 2
        case "tukey":
            return torch.where(size > k, 0.0, (1 - (r / k) ** 2) ** 2)
    raise ValueError(kernel)


def robust_cost(kernel: str, k: float, r: Tensor) -> Tensor:
    """The kernels rho(r) themselves, zero at zero."""
    size = r.abs()
    match kernel:
        case "l2":
            return r**2 / 2
        case "l1":
            return size
        case "huber":
            return torch.where(size > k, k * (size - k / 2), r**2 / 2)
        case "cauchy":
            return k**2 / 2 * torch.log1p((r / k) ** 2)
        case "gm":
            return r**2 / (k + r**2) / 2
        case "tukey":
            return k**2 / 6 * (1 - (1 - (r / k).clamp(-1, 1) ** 2) ** 3)
    raise ValueError(kernel)


def residuals(
    kind: str,
    xi: Tensor,
    p: Tensor,
    q: Tensor,
    source_normals: Tensor | None = None,
    target_normals: Tensor | None = None,
    covariances: Tensor | None = None,
    intensities: tuple[Tensor, Tensor] | None = None,
    lambda_geometric: float = 0.968,
) -> Tensor:
    """Residuals (P, rows) of pairs p, q (P, 3) after a further left update xi (6,) = (rotation, translation).

    p, the source's normals and the summed `covariances` (P, 3, 3) are already turned into the target's frame and do not
    follow xi, which is what linearisation neglects. `intensities`: (P, 1) of p, and (P, 4) of q with the gradient.
    """
    hat = torch.zeros(3, 3, dtype=xi.dtype).index_put(
        (torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 2, 0, 2, 0, 1])),
        torch.stack([-xi[2], xi[1], xi[2], -xi[0], -xi[1], xi[0]]),
    )
    turn: Tensor = torch.linalg.matrix_exp(hat)
    moved = p @ turn.T + xi[3:] - q
    if kind == "point_to_point":
        return moved
    if kind == "generalized":
        assert covariances is not None
        values, vectors = torch.linalg.eigh(covariances)
        inverse_root: Tensor = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT
        return (inverse_root @ moved[..., None])[..., 0]
    assert target_normals is not None
    across = (moved * target_normals).sum(dim=1, keepdim=True)
    if kind == "point_to_plane":
        return across
    if kind == "colored":
        assert intensities is not None
        of_source, of_target = intensities
        shade = of_source - of_target[:, :1] - (moved * of_target[:, 1:]).sum(dim=1, keepdim=True)
        return torch.cat([lambda_geometric**0.5 * across, (1.0 - lambda_geometric) ** 0.5 * shade], dim=1)
    assert source_normals is not None
    side = torch.where((source_normals * target_normals).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    half: Tensor = torch.linalg.matrix_exp(0.5 * hat)
    apart = p @ half.T + xi[3:] - q @ half
    return (apart * (target_normals + side * source_normals)).sum(dim=1, keepdim=True)


def normal_equations(
    kind: str,
    p: Tensor,
    q: Tensor,
    kernel: str = "l2",
    kernel_parameter: float = 1.0,
    source_normals: Tensor | None = None,
    target_normals: Tensor | None = None,
    covariances: Tensor | None = None,
    intensities: tuple[Tensor, Tensor] | None = None,
    lambda_geometric: float = 0.968,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian (6, 6), gradient (6,) and cost () of the pairs, with Jacobians by automatic differentiation."""

    def residuals_at(xi: Tensor) -> Tensor:
        given = (source_normals, target_normals, covariances, intensities, lambda_geometric)
        return residuals(kind, xi, p, q, *given).flatten()

    zero = torch.zeros(6, dtype=p.dtype)
    r = residuals_at(zero)
    jacobian = torch.func.jacfwd(residuals_at)(zero)
    weight = robust_weight(kernel, kernel_parameter, r)
    hessian = jacobian.T @ (weight[:, None] * jacobian)
    return hessian, jacobian.T @ (weight * r), robust_cost(kernel, kernel_parameter, r).sum()


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 along the last axis, rounded as the native core rounds it."""
    x, y, z = (a - b).unbind(dim=-1)
    return x * x + y * y + z * z


def root(squared: Tensor) -> Tensor:
    """The square root, with a gradient of zero at zero."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
