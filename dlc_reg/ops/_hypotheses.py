"""Operators of the global search: descriptors, matches, poses from matches, and the judging of many poses at once.

Unlike the other operators they take torch tensors only, float32 or float64 (they work in float32), and their answers
carry no gradients. They have no CUDA kernels: CUDA tensors are copied to the host and worked on there, and answers are
copied back to the device of what they belong to, so that no CUDA graph can capture them. No answer
depends on `num_threads` (None: all cores). `_hypotheses_reference.py` holds a readable twin of each.

Bad arguments raise `InputError`: not a tensor, a wrong shape or dtype, NaN or infinity, a length that is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _library, _validate
from dlc_reg.ops._search import SearchIndex

FEATURE_SIZE = 33


def fpfh(
    index: SearchIndex, normals: Tensor, radius: float, *, oriented: bool = False, num_threads: int | None = None
) -> Tensor:
    """Fast point feature histograms (Rusu et al., ICRA 2009), (N, 33) float32, for the points of `index`.

    With `oriented=False` they do not depend on the sign of any normal; the classical ones, those of Open3D, need
    `oriented=True` and unit normals (N, 3) that point to the sensor. Neighbours lie strictly within `radius`, in the
    points' unit. A point without any has zeros; otherwise each of the three histograms sums to at most 200: the point's
    own over the pairs that define their angles, and the neighbours' weighted by their inverse squared distances.
    Made on the host; an index on a CUDA device costs a copy of its points and another tree.
    """
    return _described(_core.fpfh, FEATURE_SIZE, index, normals, radius, oriented, num_threads)


def signatures(
    index: SearchIndex, normals: Tensor, radius: float, *, oriented: bool = False, num_threads: int | None = None
) -> Tensor:
    """Signatures of histograms of orientations, (N, 352) float32, or (N, 192) if not `oriented`, of the index's points.

    SHOT (Tombari, Salti and Di Stefano, ECCV 2010): the cosines between the normals (N, 3) of the neighbours and the
    point's z, in histograms by where the neighbours lie: 8 azimuths, 2 elevations (even in height), 2 shells; linear
    between all bins. The frame is TOLDI's (Yang et al., Pattern Recognition 2017): z the point's normal, x where the
    surface leaves the tangent plane. Rows have unit length; zeros where fewer than four neighbours lie strictly within
    `radius`, in the points' unit, or where these are flat.
    With `oriented=False` they do not depend on the sign of any normal: z is turned to where the neighbours lie, and
    cosines lose their sign. Made on the host; an index on a CUDA device costs a copy of its points and another tree.
    """
    size = _core.signature_size(bool(oriented))
    return _described(_core.signatures, size, index, normals, radius, oriented, num_threads)


def _described(
    describe: Callable[..., None],
    size: int,
    index: SearchIndex,
    normals: Tensor,
    radius: float,
    oriented: bool,
    num_threads: int | None,
) -> Tensor:
    if not isinstance(index, SearchIndex):
        raise InputError("index", f"a {type(index).__name__}", "a SearchIndex")
    given, workers = _rows("normals", normals, 3, len(index)), _validate.threads(num_threads)
    points, tree = _library.unchecked(index.points), index.tree
    if isinstance(tree, _cuda.Tree):
        tree = _core.KdTree(points.data_ptr(), len(points), workers)
    features = torch.empty(len(points), size, dtype=torch.float32)
    reach = _positive("radius", radius)
    addresses = points.data_ptr(), given.data_ptr()
    describe(tree, *addresses, len(points), reach, bool(oriented), features.data_ptr(), workers)
    return features.to(normals.device)


def nearest_features(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """For each row of a (N, D) the nearest row of b (M, D): indices (N,) int64 and squared distances (N,) float32.

    Exact up to float32 rounding at the size of the squared rows; equal rows by index. -1 and inf if b has no rows.
    Searched on the host; answers are on a's device.
    """
    first = _rows("a", a, None)
    second = _rows("b", b, first.shape[1])
    indices = torch.empty(len(first), dtype=torch.int64)
    squared = torch.empty(len(first), dtype=torch.float32)
    _core.nearest_features(
        first.data_ptr(),
        len(first),
        second.data_ptr(),
        len(second),
        first.shape[1],
        indices.data_ptr(),
        squared.data_ptr(),
        _validate.threads(num_threads),
    )
    return indices.to(a.device), squared.to(a.device)


def mutual_matches(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows (K, 2) of indices into a (N, D) and b (M, D) that are each other's nearest, and their squared distances.

    In the order of a's rows; K = 0 if either has none.
    """
    forward, squared = nearest_features(a, b, num_threads=num_threads)
    backward = nearest_features(b, a, num_threads=num_threads)[0].to(forward.device)
    rows = (forward >= 0).nonzero()[:, 0]
    rows = rows[backward[forward[rows]] == rows]
    return torch.stack([rows, forward[rows]], 1), squared[rows]


def propose_poses(
    source: Tensor,
    target: Tensor,
    tolerance: float,
    *,
    max_seeds: int = 300,
    max_clique: int = 30,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Poses (K, 4, 4) float64 from matched points (N, 3), and how many matches support each (K,) int64.

    Matches whose mutual distances agree within `tolerance` (in the points' unit) form a graph; a greedy clique of at
    most `max_clique` about each of at most `max_seeds` matches in the most triangles gives a pose by Procrustes,
    refitted once to its supporters (SC2-PCR, Chen et al., CVPR 2022; maximal cliques, Zhang et al., CVPR 2023). Poses
    map source to target and come in the order of their seeds. K = 0 if no three matches agree, so for N < 3. Time and
    memory grow with N squared. Found on the host; answers are on the source's device.
    """
    p = _rows("source", source, 3)
    q = _rows("target", target, 3, len(p))
    limit = _positive("tolerance", tolerance)
    seeds = min(_validate.count("max_seeds", max_seeds), len(p))
    clique = min(_validate.count("max_clique", max_clique), max(1, len(p)))
    poses = torch.zeros(seeds, 4, 4, dtype=torch.float64)
    support = torch.zeros(seeds, dtype=torch.int64)
    count = _core.propose_poses(
        p.data_ptr(),
        q.data_ptr(),
        len(p),
        limit,
        seeds,
        clique,
        poses.data_ptr(),
        support.data_ptr(),
        _validate.threads(num_threads),
    )
    return poses[:count].to(source.device), support[:count].to(source.device)


class Surface:
    """A thinned cloud made ready for judging poses: points and unit normals (N, 3), N >= 1, and their grid.

    The points should be in Morton order (as `voxel_downsample` leaves them), so that every n-th of them spreads evenly.
    `cell` is the edge of a grid cell (it grows where the grid would take more than 2^24 of them) and `reach` how far
    from a point the grid still answers. `eye` (3,) is where the sensor stood, in the points' frame, or None;
    `bin_angle` [rad] is the width of a bin of its depth map, at least 1/2048 of a right angle.
    """

    def __init__(
        self,
        points: Tensor,
        normals: Tensor,
        *,
        cell: float,
        reach: float,
        eye: Any = None,
        bin_angle: float = 0.03,
    ) -> None:
        self.points = _rows("points", points, 3)
        if len(self.points) == 0:
            raise InputError("points", "no points", "at least one point")
        self.normals = _rows("normals", normals, 3, len(self.points))
        edge, far, width = (_positive(*x) for x in (("cell", cell), ("reach", reach), ("bin_angle", bin_angle)))
        try:
            self.handle = _core.Surface(self.points.data_ptr(), self.normals.data_ptr(), len(self.points), edge, far)
        except ValueError:
            given = "points that reach further than float32 does"
            raise InputError("points", given, f"a cloud that with {far:g} around it is within its range") from None
        if eye is not None:
            self.handle.set_eye(_eye(eye), width)

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"Surface({len(self)} points)"


@dataclass(frozen=True)
class Judgement:
    """What the two clouds say of each of K poses; every field is (K,) float64."""

    source_overlap: Tensor
    target_overlap: Tensor
    violations: Tensor  # share of points that float before a seen surface; -1 where no viewpoint is known
    closeness: Tensor  # mean of 1 - (d / distance)^2 over the overlap; 0 where there is none


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
    num_threads: int | None = None,
) -> Judgement:
    """Judges rigid poses (K, 4, 4), T_target_source, both ways on at most `samples` points a cloud.

    A point overlaps if the other cloud has a point within `distance` (by its grid, so approximately the nearest) and a
    normal there at an angle of a larger cosine than `normal_cosine` (of either sign unless `oriented`). It violates
    free space if it floats more than `free_margin` before a surface that the other cloud's sensor saw. Lengths are in
    the points' unit. Judged on the host; the answer is on the poses' device.
    """
    _surfaces(source, target)
    given = _poses(poses)
    out = torch.empty(len(given), 4, dtype=torch.float64)
    _core.judge_poses(
        source.handle,
        target.handle,
        given.data_ptr(),
        len(given),
        _positive("distance", distance),
        _cosine(normal_cosine),
        bool(oriented),
        _validate.length("free_margin", free_margin),
        _validate.count("samples", samples),
        out.data_ptr(),
        _validate.threads(num_threads),
    )
    return Judgement(*out.to(poses.device).unbind(1))


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
    num_threads: int | None = None,
) -> Tensor:
    """Point-to-plane ICP of rigid poses (K, 4, 4), T_target_source, on at most `samples` of the source's points.

    The correspondence distance shrinks geometrically from first to last over the iterations; normals agree as in
    `judge_poses`. A pose that at any iteration has fewer than 6 correspondences comes back as it was. Float64.
    Refined on the host; the answer is on the poses' device.
    """
    _surfaces(source, target)
    refined = _poses(poses).clone()
    _core.refine_poses(
        source.handle,
        target.handle,
        refined.data_ptr(),
        len(refined),
        _validate.count("iterations", iterations),
        _positive("first_distance", first_distance),
        _positive("last_distance", last_distance),
        _cosine(normal_cosine),
        bool(oriented),
        _validate.count("samples", samples),
        _validate.threads(num_threads),
    )
    return refined.to(poses.device)


def _tensor(argument: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(argument, f"a {type(value).__name__}", "a torch tensor")
    return value


def _rows(argument: str, value: object, width: int | None, count: int | None = None) -> Tensor:
    """A finite float32 tensor (count, width) on the host; None is any number, of columns at least one."""
    tensor = _tensor(argument, value)
    if width is None:
        if tensor.ndim != 2 or tensor.shape[1] == 0:
            raise InputError(argument, f"shape {tuple(tensor.shape)}", "shape (N, D)")
        width = tensor.shape[1]
    return _library.host(argument, _validate.rows(argument, tensor, width, count))


def _poses(value: object) -> Tensor:
    """Finite float64 poses (K, 4, 4) on the host."""
    tensor = _tensor("poses", value)
    if tensor.ndim != 3 or tensor.shape[1:] != (4, 4):
        raise InputError("poses", f"shape {tuple(tensor.shape)}", "shape (K, 4, 4)")
    if not tensor.is_floating_point():
        raise InputError("poses", f"dtype {tensor.dtype}", "a floating-point dtype")
    poses = _library.host("poses", tensor.double())
    if not bool((poses[:, 3] == poses.new_tensor([0.0, 0.0, 0.0, 1.0])).all()):
        raise InputError("poses", "a last row that differs", "the last row (0, 0, 0, 1) in every pose")
    return poses


def _surfaces(source: object, target: object) -> None:
    for argument, value in (("source", source), ("target", target)):
        if not isinstance(value, Surface):
            raise InputError(argument, f"a {type(value).__name__}", "a Surface")


def _positive(argument: str, value: object) -> float:
    """A length that float32 can hold."""
    number = _validate.length(argument, value, positive=True)
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= number <= limits.max:
        raise InputError(argument, str(number), "a number within the range of float32")
    return number


def _cosine(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not -1 <= number <= 1:
        raise InputError("normal_cosine", repr(value), "a number from -1 to 1")
    return number


def _eye(value: Any) -> list[float]:
    try:
        eye = torch.as_tensor(value, dtype=torch.float32).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        eye = []
    if len(eye) != 3 or not all(map(math.isfinite, eye)):
        raise InputError("eye", repr(value), "three finite numbers")
    return eye
