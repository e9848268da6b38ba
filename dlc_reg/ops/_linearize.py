"""The normal equations of one registration step, in one native pass over the correspondences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _library, _validate
from dlc_reg.ops._search import SearchIndex, index_over
from dlc_reg.ops._validate import Array

KINDS = {"point_to_point": 0, "point_to_plane": 1, "symmetric": 2, "generalized": 3, "colored": 4}
_WITH_PLANES = ("point_to_plane", "symmetric", "colored")
_DATA = (
    "source_normals", "source_covariances", "target_normals", "target_covariances", "source_intensities",
    "target_intensities",
)  # fmt: skip
KERNELS = {"l2": 0, "l1": 1, "huber": 2, "cauchy": 3, "gm": 4, "tukey": 5}

_ROW, _COLUMN = torch.triu_indices(6, 6)
_FULL = torch.empty((6, 6), dtype=torch.int64)  # where the upper triangle's entries stand in the sums
_FULL[_ROW, _COLUMN] = _FULL[_COLUMN, _ROW] = torch.arange(21)


@dataclass(frozen=True)
class Moments:
    """Weighted moments of corresponding points p (source, moved by the transform) and q (target), float64."""

    weight: Tensor
    """() sum of w"""
    source: Tensor
    """(3,) sum of w p"""
    target: Tensor
    """(3,) sum of w q"""
    cross: Tensor
    """(3, 3) sum of w q p^T"""
    source_squared: Tensor
    """() sum of w |p|^2"""
    target_squared: Tensor
    """() sum of w |q|^2"""


@dataclass(frozen=True)
class Linearization:
    """What `linearize` found, without gradients. p is a source point moved by the transform, q its target point."""

    kind: str
    totals: Tensor
    """(36,) float64 on the source's device, the layout of csrc/core/residuals.hpp"""
    indices: Tensor
    """(N,) int64 on the source's device, the target point of each source point, -1 where there is none"""
    distances: Tensor
    """(N,) float32 on the source's device, |p - q|, inf where there is none"""
    _host: Tensor | None = field(default=None, repr=False)

    @property
    def sums(self) -> Tensor:
        """`totals` on the host, from where all else is read. Where a graph captured it: ask after a replay."""
        return self.totals.cpu() if self._host is None else self._host

    @property
    def hessian(self) -> Tensor:
        """(6, 6) float64: sum of w J^T J, Gauss-Newton's approximation, xi = (rotation [rad], translation)."""
        self._need_normal_equations()
        return self.sums[_FULL]

    @property
    def gradient(self) -> Tensor:
        """(6,) float64: sum of w J^T r, the gradient of `cost` along xi. Gauss-Newton's step solves H xi = -g."""
        self._need_normal_equations()
        return self.sums[21:27]

    @property
    def cost(self) -> float:
        """Sum of the robust costs rho(r); r^2 / 2 for "l2"."""
        return float(self.sums[27])

    @property
    def count(self) -> int:
        """How many source points have a correspondence."""
        return int(self.sums[28])

    @property
    def squared_distance_sum(self) -> float:
        """Sum of |p - q|^2 over the correspondences."""
        return float(self.sums[29])

    def moments(self) -> Moments:
        """The weighted moments, of "point_to_point" only."""
        if self.kind != "point_to_point":
            raise InputError("kind", repr(self.kind), '"point_to_point", the only one that has moments')
        s = self.sums
        return Moments(s[0], s[1:4], s[4:7], s[7:16].reshape(3, 3), s[16], s[17])

    def symmetric_step(self, xi: Tensor) -> Tensor:
        """The motion (4, 4) float64 that a solution xi (6,) of the "symmetric" equations stands for: T <- step @ T.

        Rusinkiewicz (SIGGRAPH 2019), equation 11: half of the rotation on each side, about the means of the
        correspondences, as Open3D 0.20 does it. To first order it is the left update by exp(xi).
        """
        if self.kind != "symmetric":
            raise InputError("kind", repr(self.kind), '"symmetric", the only one whose update is split in halves')
        sums, twist = self.sums.numpy(), xi.detach().numpy().astype(np.float64)
        source_mean, target_mean = sums[30:33] / sums[28], sums[33:36] / sums[28]
        half, total = 0.5 * twist[:3], source_mean + target_mean  # half = axis * tan(angle / 2) of the whole rotation
        hat = np.array([[0.0, -half[2], half[1]], [half[2], 0.0, -half[0]], [-half[1], half[0], 0.0]])
        cosine = 1.0 / math.sqrt(1.0 + half @ half)
        turn = cosine * (np.eye(3) + hat) + cosine**2 / (1.0 + cosine) * np.outer(half, half)
        # From the origin to the means: the same least-squares solution in other coordinates.
        centred = twist[3:] + source_mean - target_mean + hat @ total
        step = np.eye(4)
        step[:3, :3] = turn @ turn
        step[:3, 3] = target_mean + turn @ centred * cosine - step[:3, :3] @ source_mean
        return torch.from_numpy(step)

    def _need_normal_equations(self) -> None:
        if self.kind == "point_to_point":
            raise InputError("kind", repr(self.kind), 'another kind: "point_to_point" has moments() instead')


class SearchMemory:
    """What `linearize` keeps of its searches from call to call, while source, index and maximum stay the same.

    A search is left out where the point has moved so little that no other target point can have become the nearest.
    Begins anew by itself where one of the three is another. Not for calls from several threads at once.
    """

    def __init__(self) -> None:
        self._key: tuple[int, int, int, float] | None = None
        self._of: tuple[Tensor, SearchIndex] | None = None
        self._memory = torch.empty(0)

    def of(self, source: Tensor, index: SearchIndex, limit: float) -> int:
        """The address of the memory for these."""
        key = source.data_ptr(), len(source), id(index), limit
        if key != self._key:
            self._key, self._of = key, (source, index)  # kept alive, so that no others get their addresses
            self._memory = torch.zeros(_core.search_memory_bytes(len(source)), dtype=torch.uint8)
        return self._memory.data_ptr()


def linearize(
    kind: str,
    source: Array,
    index: SearchIndex,
    transform: Array,
    *,
    max_distance: float | None,
    kernel: str = "l2",
    kernel_parameter: float = 1.0,
    source_normals: Array | None = None,
    source_covariances: Array | None = None,
    target_normals: Array | None = None,
    target_covariances: Array | None = None,
    source_intensities: Array | None = None,
    target_intensities: Array | None = None,
    lambda_geometric: float = 0.968,
    correspondences: Array | None = None,
    memory: SearchMemory | None = None,
    num_threads: int | None = None,
) -> Linearization:
    """Nearest neighbours, residuals, robust weights, Jacobians and their sums in one pass.

    With p = R p_source + t and q its correspondence among the points of `index`, the residuals are

    - "point_to_point": p - q, weighted by its length; gives moments for the closed form instead of normal equations;
    - "point_to_plane": (p - q) . n_target (Chen and Medioni, 1992);
    - "symmetric": (p - q) . (n_target +- R n_source), the sign that adds up (Rusinkiewicz, SIGGRAPH 2019);
    - "generalized": (C_target + R C_source R^T)^(-1/2) (p - q) (Segal et al., RSS 2009);
    - "colored": sqrt(l) (p - q) . n_target and sqrt(1 - l) (intensity of p - intensity of q - gradient . (p - q)), with
      l = `lambda_geometric` and the gradient along the target's surface (Park, Zhou and Koltun, ICCV 2017).

    Definitions and robust weights are those of Open3D 0.20's legacy estimations. The derivative is along xi =
    (rotation, translation) about the target's origin, updating the transform on the left; that of normals and
    covariances is neglected, as everywhere. "symmetric" moves p by half of xi and q back by the other half.

    Args:
        kind: one of the five above.
        source: (N, 3) float32 or float64 in its own frame, N >= 0. Quickest in Morton order.
        index: over the target's points (M, 3).
        transform: (4, 4), T_target_source.
        max_distance: correspondences are strictly nearer than this, in the points' unit. None: all.
        kernel: "l2", "l1", "huber", "cauchy", "gm" (Geman-McClure) or "tukey", applied to each scalar residual.
        kernel_parameter: the kernel's scale k, in the residual's unit ("gm": its square, as in Open3D).
        source_normals, target_normals: (N, 3) and (M, 3) unit vectors, for the kinds that use them.
        source_covariances, target_covariances: (N, 6) and (M, 6), xx xy xz yy yz zz, or (N, 3, 3) and (M, 3, 3).
        source_intensities: (N, 1), for "colored".
        target_intensities: (M, 4), each with its gradient per unit of length: see `intensity_gradients`; for "colored".
        lambda_geometric: 0 to 1, what geometry counts against colour, for "colored".
        correspondences: (N,) int64 indices of target points, -1 for none: used as they are, nothing is searched and
            `max_distance` does not apply.
        memory: of the calls before; the answer is the same without it.
        num_threads: None for all cores. The sums are the same bits for any number.

    Returns:
        A `Linearization`. On a CUDA device, where all but `transform` has to be, it is one launch, and only the sums
        come to the host. A backward pass through it raises.

    A CUDA graph can capture it and then checks no values; its answer is `totals`, and a `transform` on the device is
    read anew by every replay (one on the host stays as it was). Under `torch.compile(fullgraph=True)` the operator
    takes the index's points and finds the tree by them; `memory` is not used, and numbers such as `cost` cannot be
    asked for inside.

    Raises:
        InputError: wrong shapes, dtypes, devices or names, NaN or infinity, missing normals, covariances, intensities.
    """
    kind_id = _validate.choice("kind", kind, KINDS)
    kernel_id = _validate.choice("kernel", kernel, KERNELS)
    scale = _validate.length("kernel_parameter", kernel_parameter, positive=True)
    limit = _validate.limit("max_distance", max_distance)
    p = _validate.points("source", source, allow_empty=True)
    _validate.same_device("source", p, "index", index.points)
    n, m = p.shape[0], index.points.shape[0]
    normals_of_source = _rows(kind, ("symmetric",), "source_normals", source_normals, 3, p, n)
    normals_of_target = _rows(kind, _WITH_PLANES, "target_normals", target_normals, 3, p, m)
    covariances_of_source = _rows(kind, ("generalized",), "source_covariances", source_covariances, 6, p, n)
    covariances_of_target = _rows(kind, ("generalized",), "target_covariances", target_covariances, 6, p, m)
    intensities_of_source = _rows(kind, ("colored",), "source_intensities", source_intensities, 1, p, n)
    intensities_of_target = _rows(kind, ("colored",), "target_intensities", target_intensities, 4, p, m)
    share = _share(lambda_geometric)
    pose = _validate.matrix("transform", transform)
    matches = None if correspondences is None else _indices(correspondences, p, n)
    data = (normals_of_source, covariances_of_source, normals_of_target, covariances_of_target)
    colors = (intensities_of_source, intensities_of_target)
    workers = _validate.threads(num_threads)
    rest: tuple[Any, ...] = (matches, kind_id, limit, kernel_id, scale, workers, *colors, share)
    if _library.watched(p, pose, *data, *colors):
        return Linearization(kind, *linearize_op(p, index.points, pose, *data, *rest))
    answer = _linearize(p, index, memory, pose, *data, *rest)
    if _validate.capturing(p):
        return Linearization(kind, *answer)
    sums = answer[0].cpu()
    _check_sums(sums, p, *data, *colors)
    return Linearization(kind, *answer, sums)


def _linearize(
    source: Tensor,
    index: SearchIndex,
    memory: SearchMemory | None,
    transform: Tensor,
    source_normals: Tensor | None,
    source_covariances: Tensor | None,
    target_normals: Tensor | None,
    target_covariances: Tensor | None,
    correspondences: Tensor | None,
    kind: int,
    limit: float,
    kernel: int,
    scale: float,
    num_threads: int,
    source_intensities: Tensor | None = None,
    target_intensities: Tensor | None = None,
    lambda_geometric: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, indices and distances, of arguments of the right shapes and dtypes."""
    p, n, m = _library.placed(source), source.shape[0], index.points.shape[0]
    search = correspondences is None
    if correspondences is None:
        indices = torch.empty(n, dtype=torch.int64, device=p.device)
    else:
        indices = _checked_indices(correspondences, m)
    distances = torch.empty(n, dtype=torch.float32, device=p.device)
    sums = torch.empty(_core.LINEARIZE_SUMS, dtype=torch.float64, device=p.device)
    given = (
        source_normals, source_covariances, target_normals, target_covariances, source_intensities, target_intensities
    )  # fmt: skip
    rows = [None if x is None else _library.placed(x) for x in given]
    addresses = [0 if x is None else x.data_ptr() for x in rows]
    source_side = (p.data_ptr(), *addresses[:2], n)
    target_side = (index.points.data_ptr(), *addresses[2:], lambda_geometric)
    objective = (limit, kernel, scale)
    matches = (indices.data_ptr(), distances.data_ptr())
    arguments: tuple[Any, ...]
    if isinstance(index.tree, _cuda.Tree):
        tree = index.tree.memory.data_ptr() if search else 0
        pose, where = _device_pose(transform)
        partials = sums.new_empty(_core.cuda_linearize_partials(n))
        finished = _cuda.flag(p)
        workspace = (partials.data_ptr(), finished.data_ptr(), sums.data_ptr())
        arguments = (kind, *source_side, tree, m, *target_side, *where, *objective, *matches, *workspace)
        _core.cuda_linearize(*_cuda.call(p), *arguments)
    else:
        pose = _validate.pose("transform", transform)
        remembered = memory.of(p, index, limit) if memory is not None and search else 0
        native = (search, *matches, remembered, sums.data_ptr(), num_threads)
        arguments = (kind, *source_side, index.tree, *target_side, pose.data_ptr(), *objective, *native)
        _core.linearize(*arguments)
    return sums, indices, distances


def _device_pose(transform: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The pose, to be kept alive, and its addresses on the host and on the device, one of them 0."""
    if not _validate.capturing(transform):
        pose = _validate.pose("transform", transform)
        return pose, (pose.data_ptr(), 0)
    pose = transform.detach().to(torch.float64).contiguous()
    return pose, (0, pose.data_ptr())


def _check_sums(sums: Tensor, source: Tensor, *data: Tensor | None) -> None:
    """The data is checked by what came of it: this runs in every iteration."""
    if math.isfinite(sum(sums.tolist())):
        return
    _validate.finite("source", _library.placed(source))
    for argument, rows in zip(_DATA, data, strict=True):
        if rows is not None:
            _validate.finite(argument, _library.placed(rows))


def _linearize_points(source: Tensor, target: Tensor, transform: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For the dispatcher, which takes no index but the points of one."""
    sums, indices, distances = _linearize(source, index_over(target), None, transform, *rest)
    if not _validate.capturing(source):
        _check_sums(sums.cpu(), source, *rest[:4], *(rest[10:12] or (None, None)))
    return sums, indices.clone() if rest[4] is not None else indices, distances


# Without a gradient formula on purpose: autograd refuses to go through it instead of going around it.
linearize_op = torch.library.custom_op(
    "dlc_reg::linearize",
    _linearize_points,
    mutates_args=(),
    schema="(Tensor source, Tensor target, Tensor transform, Tensor? source_normals, Tensor? source_covariances,"
    " Tensor? target_normals, Tensor? target_covariances, Tensor? correspondences, int kind, float limit, int kernel,"
    " float scale, int num_threads, Tensor? source_intensities=None, Tensor? target_intensities=None,"
    " float lambda_geometric=1.0) -> (Tensor, Tensor, Tensor)",
)


@linearize_op.register_fake
def _(source: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    n = source.shape[0]
    sums = source.new_empty((_core.LINEARIZE_SUMS,), dtype=torch.float64)
    return sums, source.new_empty((n,), dtype=torch.int64), source.new_empty((n,))


def _rows(
    kind: str, users: tuple[str, ...], argument: str, value: Array | None, width: int, source: Tensor, n: int
) -> Tensor | None:
    """The (n, width) float32 data if this kind uses it; it is on the source's device."""
    if kind not in users:
        return None
    if value is None:
        raise InputError(argument, "nothing", f"shape ({n}, {width}): {kind} needs them")
    if width == 6 and value.ndim == 3 and tuple(value.shape[1:]) == (3, 3):
        value = value.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
    rows = _validate.rows(argument, value, width, n)
    _validate.same_device(argument, rows, "source", source)
    return rows


def _share(value: float) -> float:
    share = _validate.length("lambda_geometric", value)
    if share > 1:
        raise InputError("lambda_geometric", str(share), "a number from 0 to 1")
    return share


def _indices(value: Array, source: Tensor, n: int) -> Tensor:
    tensor = _validate.as_tensor("correspondences", value)
    if tuple(tensor.shape) != (n,) or tensor.dtype != torch.int64:
        raise InputError("correspondences", f"{tensor.dtype} of shape {tuple(tensor.shape)}", f"int64 of shape ({n},)")
    _validate.same_device("correspondences", tensor, "source", source)
    return tensor


def _checked_indices(tensor: Tensor, m: int) -> Tensor:
    """Contiguous, from -1 to m - 1; a CUDA graph records no check."""
    tensor = _library.placed(tensor)
    if not _validate.capturing(tensor) and len(tensor) and not (int(tensor.min()) >= -1 and int(tensor.max()) < m):
        raise InputError("correspondences", f"indices {int(tensor.min())} to {int(tensor.max())}", f"-1 to {m - 1}")
    return tensor
