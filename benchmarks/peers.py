"""The same search by everybody: points and queries in, neighbours out. Inputs lie ready in each library's own form.

Every function makes a call that builds and queries, or with `ready` one that only queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import OURS, Call, gather
from numpy.typing import NDArray
from oracle import Found

from dlc_reg import ops

Points = NDArray[np.float32]

SMALL = 10_000
"""Largest clouds for the libraries that compare everything with everything."""


def searchers(
    points: Points,
    queries: Points,
    threads: int,
    k: int = 1,
    limit: float | None = None,
    ready: bool = False,
    names: tuple[str, ...] | None = None,
) -> dict[str, Call]:
    """Contenders for the k nearest, within `limit` if there is one; those of `names` only."""
    given = (points, queries, threads, k, limit, ready)
    makers: dict[str, Callable[..., Call]] = {OURS: _ours, "pykdtree": _pykdtree, "scipy cKDTree": _scipy}
    makers |= {"Open3D tensor": _open3d_tensor}
    if limit is None:
        makers["small_gicp"] = _small_gicp
        if k == 1 and not ready:
            makers["Open3D legacy"] = _open3d_legacy
        if len(points) <= SMALL:
            makers |= {"faiss flat": _faiss, "torch.cdist": _cdist}
    return gather({name: _bind(make, given) for name, make in makers.items() if names is None or name in names})


def _bind(make: Callable[..., Call], given: tuple[Any, ...]) -> Callable[[], Call]:
    return lambda: make(*given)


def _either(build: Callable[[], Any], query: Callable[[Any], Found], ready: bool) -> Call:
    if not ready:
        return lambda: query(build())
    index = build()
    return lambda: query(index)


def _ours(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    p, q = torch.from_numpy(points), torch.from_numpy(queries)
    if not ready:
        return lambda: Found(ops.knn(q, p, k, max_distance=limit, num_threads=threads)[1])
    index = ops.SearchIndex(p, num_threads=threads)
    return lambda: Found(index.knn(q, k, limit, num_threads=threads)[1])


def _pykdtree(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    from pykdtree.kdtree import KDTree

    bound = {} if limit is None else {"distance_upper_bound": limit}
    return _either(lambda: KDTree(points), lambda tree: Found(tree.query(queries, k=k, **bound)[1]), ready)


def _scipy(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    from scipy.spatial import cKDTree

    p, q = points.astype(np.float64), queries.astype(np.float64)
    bound = np.inf if limit is None else limit
    return _either(
        lambda: cKDTree(p), lambda tree: Found(tree.query(q, k, distance_upper_bound=bound, workers=threads)[1]), ready
    )


def _open3d_tensor(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    import open3d as o3d

    p, q = o3d.core.Tensor.from_numpy(points), o3d.core.Tensor.from_numpy(queries)

    def build() -> Any:
        search = o3d.core.nns.NearestNeighborSearch(p)
        _ = search.knn_index() if limit is None else search.hybrid_index(limit)
        return search

    if limit is None:
        return _either(build, lambda search: Found(search.knn_search(q, k)[0].numpy()), ready)
    return _either(build, lambda search: Found(search.hybrid_search(q, limit, k)[0].numpy()), ready)


def _open3d_legacy(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    """The one of its calls that searches for many points at once gives distances."""
    import open3d as o3d

    p, q = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(x.astype(np.float64))) for x in (points, queries))
    return lambda: Found(distances=q.compute_point_cloud_distance(p))


def _small_gicp(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    import small_gicp

    p, q = points.astype(np.float64), queries.astype(np.float64)

    def query(tree: Any) -> Found:
        if k == 1:
            return Found(tree.batch_nearest_neighbor_search(q, num_threads=threads)[0])
        return Found(tree.batch_knn_search(q, k, num_threads=threads)[0])

    return _either(lambda: small_gicp.KdTree(p, num_threads=threads), query, ready)


def _faiss(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    import faiss

    faiss.omp_set_num_threads(threads)

    def build() -> Any:
        index = faiss.IndexFlatL2(3)
        index.add(points)
        return index

    return _either(build, lambda index: Found(index.search(queries, k)[1]), ready)


def _cdist(points: Points, queries: Points, threads: int, k: int, limit: float | None, ready: bool) -> Call:
    p, q = torch.from_numpy(points), torch.from_numpy(queries)
    if k == 1:
        return lambda: Found(torch.cdist(q, p).argmin(dim=1))
    return lambda: Found(torch.cdist(q, p).topk(k, dim=1, largest=False).indices)
