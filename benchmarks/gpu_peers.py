"""What else works on a GPU, called lazily: torch, PyTorch3D, torch-cluster, cuVS, CuPy and Open3D's CUDA build.

Inputs are float32 tensors on the device, shared with each library without a copy; answers are indices or points there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import OURS, Call
from torch import Tensor

from dlc_reg import ops

SMALL, MIDDLE = 10_000, 100_000
"""Largest clouds for the libraries that compare everything with everything, in a matrix and in tiles."""

_missing: set[str] = set()


def gather(makers: dict[str, Callable[[], Call]]) -> dict[str, Call]:
    """The contenders whose libraries are here; of another it is said once."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ImportError, OSError) as error:  # OSError: a library that it needs in its turn
            if name == OURS:
                raise
            if name not in _missing:
                print(f"without {name}: {error}", flush=True)
                _missing.add(name)
    return found


def open3d_on(device: torch.device) -> Any:
    """Open3D, if it works there."""
    import open3d

    if device.type == "cuda" and not open3d.core.cuda.is_available():
        raise ImportError("this build of Open3D has no CUDA, or not for this device")
    return open3d


def to_open3d(open3d: Any, tensor: Tensor) -> Any:
    return open3d.core.Tensor.from_dlpack(torch.utils.dlpack.to_dlpack(tensor.contiguous()))


def to_torch(tensor: Any) -> Tensor:
    return torch.utils.dlpack.from_dlpack(tensor.to_dlpack())


def searchers(query: Tensor, points: Tensor, ready: bool) -> dict[str, Call]:
    """The nearest of `points` for every query: indices."""
    if ready:
        index = ops.SearchIndex(points)
        return {OURS: lambda: index.knn(query)[1]}
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: lambda: ops.knn(query, points)[1],
        "Open3D": lambda: _open3d(query, points),
    }
    if query.is_cuda:
        makers["CuPy KDTree"] = lambda: _cupy(query, points)
    if len(points) <= MIDDLE:
        makers["PyTorch3D"] = lambda: _pytorch3d(query, points)
        makers["torch-cluster"] = lambda: _torch_cluster(query, points)
        if query.is_cuda:
            makers["cuVS brute force"] = lambda: _cuvs(query, points)
    if len(points) <= SMALL:
        makers["torch.cdist"] = lambda: lambda: torch.cdist(query, points).argmin(1)
    return gather(makers)


def _open3d(query: Tensor, points: Tensor) -> Call:
    open3d = open3d_on(query.device)
    q, p = to_open3d(open3d, query), to_open3d(open3d, points)

    def run() -> Tensor:
        search = open3d.core.nns.NearestNeighborSearch(p)
        search.knn_index()
        return to_torch(search.knn_search(q, 1)[0])

    return run


def _cupy(query: Tensor, points: Tensor) -> Call:
    import cupy
    from cupyx.scipy.spatial import KDTree

    q, p = cupy.from_dlpack(query), cupy.from_dlpack(points)
    return lambda: torch.from_dlpack(KDTree(p).query(q)[1])


def _cuvs(query: Tensor, points: Tensor) -> Call:
    from cuvs.neighbors import brute_force

    def run() -> Tensor:
        _, indices = brute_force.search(brute_force.build(points), query, 1)
        return torch.as_tensor(indices, device=query.device)

    return run


def _pytorch3d(query: Tensor, points: Tensor) -> Call:
    from pytorch3d.ops import knn_points

    return lambda: knn_points(query[None], points[None]).idx[0]


def _torch_cluster(query: Tensor, points: Tensor) -> Call:
    from torch_cluster import knn

    return lambda: knn(points, query, 1)[1]


def normals(points: Tensor, k: int) -> dict[str, Call]:
    def by_open3d() -> Call:
        open3d = open3d_on(points.device)
        p = to_open3d(open3d, points)

        def run() -> Tensor:
            cloud = open3d.t.geometry.PointCloud(p)
            cloud.estimate_normals(max_nn=k)
            return to_torch(cloud.point.normals)

        return run

    def by_pytorch3d() -> Call:
        from pytorch3d.ops import estimate_pointcloud_normals

        return lambda: estimate_pointcloud_normals(points[None], k, disambiguate_directions=False)[0]

    makers: dict[str, Callable[[], Call]] = {OURS: lambda: lambda: ops.estimate_normals(points, k)}
    makers["Open3D"] = by_open3d
    if len(points) <= MIDDLE:
        makers["PyTorch3D"] = by_pytorch3d
    return gather(makers)


def voxels(points: Tensor, size: float) -> dict[str, Call]:
    def by_open3d() -> Call:
        open3d = open3d_on(points.device)
        p = to_open3d(open3d, points)
        return lambda: to_torch(open3d.t.geometry.PointCloud(p).voxel_down_sample(size).point.positions)

    return gather({OURS: lambda: lambda: ops.voxel_downsample(points, size), "Open3D": by_open3d})


def balls(points: Tensor, radius: float) -> dict[str, Call]:
    """All neighbours within a radius: indices, splits, and distances or None."""

    def ours() -> tuple[Tensor, Tensor, Tensor | None]:
        distances, indices, splits = ops.radius_search(points, points, radius)
        return indices, splits, distances

    def by_open3d() -> Call:
        open3d = open3d_on(points.device)
        p = to_open3d(open3d, points)

        def run() -> tuple[Tensor, Tensor, Tensor | None]:
            search = open3d.core.nns.NearestNeighborSearch(p)
            search.fixed_radius_index(radius)
            indices, _, splits = search.fixed_radius_search(p, radius)
            return to_torch(indices), to_torch(splits), None

        return run

    return gather({OURS: lambda: ours, "Open3D": by_open3d})


def open3d_icp(source: Tensor, target: Tensor, normals: Tensor, distance: float, iterations: int) -> Call:
    """Point-to-plane ICP on the device."""
    open3d = open3d_on(source.device)
    o3 = open3d.t.pipelines.registration
    p, q, n = (to_open3d(open3d, x) for x in (source, target, normals))
    rule = o3.ICPConvergenceCriteria(0, 0, iterations)
    start = open3d.core.Tensor.eye(4, open3d.core.float64, open3d.core.Device("CPU:0"))

    def run() -> Tensor:
        a, b = open3d.t.geometry.PointCloud(p), open3d.t.geometry.PointCloud(q)
        b.point.normals = n
        return torch.from_numpy(o3.icp(a, b, distance, start, o3.TransformationEstimationPointToPlane(), rule)
                                .transformation.cpu().numpy())  # fmt: skip

    return run


def pytorch3d_icp(source: Tensor, target: Tensor, iterations: int) -> Call:
    """Point-to-point ICP of a batch: poses (B, 4, 4)."""
    from pytorch3d.ops import iterative_closest_point

    def run() -> Tensor:
        rotation, shift, _ = iterative_closest_point(source, target, max_iterations=iterations).RTs
        poses = torch.eye(4, device=source.device).repeat(len(source), 1, 1)
        poses[:, :3, :3], poses[:, :3, 3] = rotation.mT, shift  # its points are rows
        return poses

    return run
