"""The clouds of `fuzz.py`: degenerate pairs in every layout that memory has, and the public calls that take them.

Every pair of clouds goes to some operators and to one registration. Where the target is the moved source, an answer
called `aligned` has to be that motion; where the two have nothing in common, none may be called so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fuzz_finding import Finding

import dlc_reg
from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.pipelines import registration as pipelines

WRONG = 0.05  # of the target's extent, that a point of the source may lie off its place under an answer called aligned
REGISTERED = 0.1  # share of the pairs that `register` is called for: it takes a hundred times as long as the others
SIZES = (0, 1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 120)
SCALES = (1.0, 1.0, 1.0, 1e-3, 1e3, 1e-30, 1e30, 1e-12, 1e12, 1e-310, 1e-42, 1e300, 1e-20, 1e19)
DTYPES = ("f8", "f8", "f4", "f4", "f2", "g", ">f8", ">f4", "i4", "i8", "i2", "u1", ">i4", "?", "c8", "O")

torch.set_num_threads(1)
warnings.simplefilter("ignore")
np.seterr(all="ignore")


def run(seed: int, number: int) -> str:
    rng = np.random.default_rng([seed, number])
    source, target, truth = pair(rng)
    given = laid_out(rng, source), laid_out(rng, target)
    kept = [np.array(cloud, copy=True) if isinstance(cloud, np.ndarray) else None for cloud in given]
    for _ in range(3):
        refusable(OPERATORS[rng.integers(len(OPERATORS))], rng, *given)
    registered = rng.random() < REGISTERED
    outcome = refusable(register if registered else icp, rng, *given, source, target, truth)
    for cloud, before in zip(given, kept, strict=True):
        if (
            before is not None
            and before.dtype != object
            and not np.array_equal(cloud, before, equal_nan=before.dtype.kind in "fc")
        ):
            raise Finding("a call changed its input")
    return f"{'register' if registered else 'icp'}: {outcome}"


def refusable(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        answer = call(*arguments)
        return answer if isinstance(answer, str) else "answered"
    except InputError as error:
        if isinstance(error.__cause__, MemoryError):
            raise Finding(f"memory was refused: {error}") from error
        return "refused"


# --- clouds -----------------------------------------------------------------------------------------------------------
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Source and target (N, 3), and the motion from one to the other, None where they have nothing in common."""
    source = shape(rng, int(rng.choice(SIZES)))
    scale = float(rng.choice(SCALES))
    if rng.random() < 0.2:
        return source * scale, shape(rng, int(rng.choice(SIZES))) * scale, None
    truth = np.eye(4)
    if rng.random() < 0.8:
        truth[:3, :3] = rotation(rng)
        truth[:3, 3] = rng.normal(size=3) * rng.choice([0, 1, 10])
    target = source @ truth[:3, :3].T + truth[:3, 3]
    if rng.random() < 0.3:
        target = target + rng.normal(size=target.shape) * 1e-3
    if rng.random() < 0.3:
        target = target[rng.permutation(len(target))[: max(3, len(target) * 3 // 4)]]
    truth[:3, 3] *= scale
    source, target = source * scale, target * scale
    if len(source) and rng.random() < 0.08:
        source[rng.integers(len(source)), rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])
    return source, target, truth


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.sign(np.linalg.det(q))
    return q


def shape(rng: np.random.Generator, n: int) -> np.ndarray:
    u, t = rng.uniform(-1, 1, (n, 3)), np.linspace(0, 1, n)
    kind = rng.integers(14)
    if kind == 0:  # one place
        u[:] = rng.normal(size=3)
    elif kind == 1:  # few places
        u = u[rng.integers(max(1, min(n, 4)), size=n)] if n else u
    elif kind == 2:  # a plane
        u[:, 2] = 0.5
    elif kind == 3:  # a line
        u = np.outer(t, rng.normal(size=3))
    elif kind == 4:  # almost a line
        u = np.outer(t, rng.normal(size=3)) + 1e-6 * u
    elif kind == 5 and n:  # one far off
        u[0] = rng.choice([1e3, 1e6, 1e12]) * rng.normal(size=3)
    elif kind == 6:  # a grid: many equal distances
        u = np.floor(u * 3)
    elif kind == 7:  # a sphere
        u /= np.linalg.norm(u, axis=1, keepdims=True)
    elif kind == 8:  # far from the origin
        u += rng.choice([1e3, 1e6, 1e9])
    elif kind == 9:  # a helix
        u = np.c_[np.cos(6 * t), np.sin(6 * t), t]
    elif kind == 10:  # two clusters
        u = u * 1e-4 + np.arange(n)[:, None] % 2
    elif kind == 11:  # a corner of three walls
        u[np.arange(n), np.arange(n) % 3] = -1
    elif kind == 12:  # almost a plane
        u[:, 2] *= 1e-7
    return u


def laid_out(rng: np.random.Generator, points: np.ndarray) -> Any:
    """The same numbers, as the type has them, in one of the layouts that arrays come in."""
    array = points
    dtype = str(rng.choice(DTYPES)) if rng.random() < 0.3 else "f8"
    if not (np.dtype(dtype).kind in "iub?" and not np.isfinite(points).all()):
        array = points.astype(dtype)
    how = rng.integers(13)
    if how == 0:
        array = np.asfortranarray(array)
    elif how == 1:
        array = array[::-1][::-1]
    elif how == 2:  # negative strides
        array = array[::-1].copy()[::-1]
    elif how == 3:  # every second row of more
        array = np.repeat(array, 2, axis=0)[::2]
    elif how == 4:  # columns of more
        array = np.concatenate([array, array], axis=1)[:, :3]
    elif how == 5:
        array = array.copy()
        array.flags.writeable = False
    elif how == 6 and array.dtype != object:  # not aligned in memory
        room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        room[:] = array
        array = room
    elif how in (7, 8) and array.dtype.isnative and array.dtype.kind in "fi" and array.dtype.char != "g":
        tensor = torch.from_numpy(array.copy())
        return tensor.requires_grad_() if how == 8 and tensor.is_floating_point() else tensor.T.contiguous().T
    elif how == 9:
        return array.tolist()
    elif how == 10 and len(array):  # a row for all
        array = np.broadcast_to(array[:1], array.shape) if rng.random() < 0.2 else array
    elif how == 11:  # of another shape
        return array.T if rng.random() < 0.3 else array[None] if rng.random() < 0.2 else array
    return array


# --- calls ------------------------------------------------------------------------------------------------------------
def _length(rng: np.random.Generator, cloud: Any) -> float:
    """Of the cloud's own order, or an awkward one."""
    if rng.random() < 0.3:
        return float(rng.choice([0.0, 1e-300, 1e-40, 1e300, np.inf, np.nan, -1.0, 1e-20, 1e20]))
    with np.errstate(all="ignore"):
        try:
            numbers = np.abs(np.asarray(cloud, np.float64))
        except (TypeError, ValueError, RuntimeError):
            return 0.1
    top = float(numbers.max(initial=0.0))
    return top * float(rng.choice([0.05, 0.3, 2.0])) if np.isfinite(top) else 0.1


def _tensor(cloud: Any) -> Any:
    if isinstance(cloud, torch.Tensor):
        return cloud.detach()
    array = np.asarray(cloud)
    return torch.from_numpy(array.astype(np.float32)) if array.dtype.kind in "fiu" and array.ndim == 2 else cloud


def _batch(cloud: Any) -> Any:
    tensor = _tensor(cloud)
    return tensor[None].float() if isinstance(tensor, torch.Tensor) else tensor


def _k(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 7, 40]))


def _hypotheses(rng: np.random.Generator, source: Any, target: Any) -> None:
    p, q, length = _tensor(source), _tensor(target), _length(rng, target)
    features = []
    for cloud in (p, q):
        index = ops.SearchIndex(cloud)
        features.append(ops.fpfh(index, ops.estimate_normals(index, 8), length))
    matches, _ = ops.mutual_matches(*features)
    poses, _ = ops.propose_poses(p[matches[:, 0]], q[matches[:, 1]], length)
    surfaces = [
        ops.Surface(c, ops.estimate_normals(c, 8), cell=length / 3, reach=length, eye=(0, 0, 0)) for c in (p, q)
    ]
    poses = torch.cat([poses, torch.eye(4, dtype=torch.float64)[None]])
    refined = ops.refine_poses(*surfaces, poses, iterations=4, first_distance=length, last_distance=length / 2)
    ops.judge_poses(*surfaces, refined, distance=length, normal_cosine=0.5, oriented=False, free_margin=length)


def _assignment(rng: np.random.Generator, source: Any, target: Any) -> None:
    p, q = _batch(source), _batch(target)
    n, m = len(source), len(target)
    weights = torch.full((1, n), 1 / max(n, 1)), torch.full((1, m), 1 / max(m, 1))
    poses = torch.eye(4, dtype=torch.float64)[None, None]
    beta, outlier = torch.tensor(float(rng.choice([0, 1, 1e6]))), torch.tensor(float(rng.choice([-3, 0, 60])))
    ops.soft_assignment(p, q, torch.zeros(1, n, m), poses, beta, outlier, *weights)


def _linearize(rng: np.random.Generator, source: Any, target: Any) -> None:
    index = ops.SearchIndex(target)
    kind = str(rng.choice(["point_to_point", "point_to_plane"]))
    normals = ops.estimate_normals(index, 8) if kind == "point_to_plane" else None
    ops.linearize(kind, source, index, np.eye(4), max_distance=_length(rng, target), target_normals=normals)


OPERATORS: tuple[Callable[[np.random.Generator, Any, Any], Any], ...] = (
    lambda rng, p, q: ops.knn(p, q, _k(rng)),
    lambda rng, p, q: ops.knn(p, q, _k(rng), max_distance=_length(rng, q)),
    lambda rng, p, q: ops.radius_search(p, q, _length(rng, q)),
    lambda rng, p, q: ops.voxel_downsample(p, _length(rng, p)),
    lambda rng, p, q: ops.estimate_normals(p, _k(rng)),
    lambda rng, p, q: ops.estimate_covariances(p, _k(rng), max_distance=_length(rng, p)),
    lambda rng, p, q: ops.morton_order(p),
    lambda rng, p, q: ops.knn_batch(_batch(p), _batch(q), _k(rng)),
    lambda rng, p, q: ops.icp_batch(_batch(p), _batch(q), max_distance=_length(rng, q), max_iterations=5),
    lambda rng, p, q: ops.icp_batch(_batch(p)[:0], _batch(q)[:0], max_distance=1.0),
    lambda rng, p, q: ops.knn_points(_batch(p), _batch(q), K=_k(rng)),
    lambda rng, p, q: ops.ball_query(_batch(p), _batch(q), K=_k(rng), radius=_length(rng, q)),
    lambda rng, p, q: ops.sample_farthest_points(_batch(p), K=_k(rng)),
    lambda rng, p, q: ops.chamfer_distance(_batch(p), _batch(q)),
    lambda rng, p, q: ops.corresponding_points_alignment(_batch(p), _batch(p)),
    lambda rng, p, q: ops.iterative_closest_point(_batch(p), _batch(q), max_iterations=3),
    lambda rng, p, q: (
        dlc_reg.PointCloud.from_any(p, remove_non_finite=True).with_normals().voxel_downsample(_length(rng, p))
    ),
    _hypotheses,
    _assignment,
    _linearize,
)


def icp(rng: np.random.Generator, p: Any, q: Any, *_: Any) -> str:
    estimation = (
        pipelines.TransformationEstimationPointToPoint(bool(rng.integers(2))),
        pipelines.TransformationEstimationPointToPlane(),
        pipelines.TransformationEstimationForGeneralizedICP(),
    )[rng.integers(3)]
    if isinstance(estimation, pipelines.TransformationEstimationPointToPlane):
        q = dlc_reg.PointCloud.from_any(q).with_normals()
    result = pipelines.registration_icp(p, q, _length(rng, p), np.eye(4), estimation)
    if not np.isfinite(np.asarray(result.transformation)).all():
        return "not finite"
    return "answered"


def register(
    rng: np.random.Generator, p: Any, q: Any, source: np.ndarray, target: np.ndarray, truth: np.ndarray | None
) -> str:
    method = str(
        rng.choice(["auto", "global", "learned", "point_to_point", "point_to_plane", "generalized", "symmetric"])
    )
    result = dlc_reg.register(
        p,
        q,
        method=method,
        with_scaling=bool(rng.random() < 0.1),
        remove_non_finite=bool(rng.integers(2)),
        num_threads=1,
    )
    verdict = str(result.verdict.value)
    if not np.isfinite(result.transformation).all() and verdict != "failed":
        raise Finding(f"{verdict} with a transformation that is not finite")
    same = all(isinstance(c, (np.ndarray, torch.Tensor)) and len(c) == len(k) for c, k in ((p, source), (q, target)))
    if verdict == "aligned" and same:
        check_aligned(
            result, np.asarray(p, np.float64) if isinstance(p, np.ndarray) else p.detach().double().numpy(), truth
        )
    return verdict


def check_aligned(result: Any, points: np.ndarray, truth: np.ndarray | None) -> None:
    if truth is None:
        raise Finding("clouds that have nothing in common are called aligned")
    points = points[np.isfinite(points).all(1)]
    gap = (points @ result.transformation[:3, :3].T + result.transformation[:3, 3]) - (
        points @ truth[:3, :3].T + truth[:3, 3]
    )
    extent = float(np.linalg.norm(np.ptp(points, axis=0)))
    off = float(np.linalg.norm(gap, axis=1).max()) / extent
    if not off < WRONG:
        raise Finding(f"called aligned, and {off:.3f} of the extent off: {result.verdict_reasons}")
