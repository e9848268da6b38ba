"""The frame of the classical objectives: two clouds made ready, a sum over nearest neighbours, the step it implies.

Each objective is a small value (which residual, which robust kernel); everything about the two clouds is a `Pair`.
Poses `omega` are (4, 4) float64 tensors from the source's local frame into the **pivot frame**: the target's axes with
the origin at `Pair.pivot`, about which an update rotates. `Pair.to_omega` and `Pair.to_absolute` convert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.constraint import FREE, Constraint
from dlc_reg.registration.steps import solve_least

Array = NDArray[np.float64]

_UPPER = np.triu_indices(6)


@dataclass(frozen=True)
class Pair:
    """Two clouds made ready for the objectives: the source sorted along a Morton curve, the target searchable.

    `source` (N, 3) float32 about `source_origin`; `target` over (M, 3) float32 about `target_origin`; `order` (N,)
    int64: row i of `source` is the caller's point `order[i]`. `pivot` (3,) is in the target's local frame.
    `source_count` divides the inliers in the fitness. `correspondences` (N,) int64, -1 = none, replaces the search.
    `constraint`: which motions a step may be.
    """

    source: Tensor
    target: ops.SearchIndex
    max_distance: float
    source_origin: Array
    target_origin: Array
    pivot: Array
    order: Tensor
    source_count: int
    source_normals: Tensor | None = None
    source_covariances: Tensor | None = None
    target_normals: Tensor | None = None
    target_covariances: Tensor | None = None
    source_intensities: Tensor | None = None
    target_intensities: Tensor | None = None
    correspondences: Tensor | None = None
    constraint: Constraint = FREE
    num_threads: int | None = None
    memory: ops.SearchMemory = field(default_factory=ops.SearchMemory, repr=False, compare=False)

    @staticmethod
    def prepare(
        source: PointCloud,
        target: PointCloud,
        objective: Objective,
        *,
        max_distance: float,
        pivot: Array | None = None,
        index: ops.SearchIndex | None = None,
        source_count: int | None = None,
        constraint: Constraint = FREE,
        num_threads: int | None = None,
    ) -> Pair:
        """Sorts the source; searches in the target's own index, or in `index`, made of `target.points` before.

        `pivot`: the target's own origin by default. Colour gradients are those of the
        neighbours within 2 `max_distance`. Raises `InputError` where the objective needs normals, covariances or
        colours that a cloud has not, and for a distance that is not positive (inf is allowed).
        """
        if not max_distance > 0:
            raise InputError("max_distance", f"{max_distance:g}", "a distance above 0")
        source, target = objective.complete(source), objective.complete(target)
        for name, cloud in (("source", source), ("target", target)):
            for what in sorted(objective.needs_of(name)):
                objective.require(what, name, cloud)
        order = ops.morton_order(source.points, num_threads=num_threads)
        index = target.search_index(num_threads) if index is None else index
        return Pair(
            source=source.points[order].contiguous(),
            target=index,
            max_distance=float(max_distance),
            source_origin=np.asarray(source.origin, dtype=np.float64),
            target_origin=np.asarray(target.origin, dtype=np.float64),
            pivot=np.zeros(3) if pivot is None else pivot,
            order=order,
            source_count=len(source) if source_count is None else source_count,
            source_normals=_rows(source.normals, order) if "source_normals" in objective.needs else None,
            source_covariances=_rows(source.covariances, order) if "source_covariances" in objective.needs else None,
            target_normals=target.normals,
            target_covariances=target.covariances,
            source_intensities=_rows(source.intensities, order) if "source_colors" in objective.needs else None,
            target_intensities=_textured(target, index, max_distance, num_threads)
            if "target_colors" in objective.needs
            else None,
            constraint=constraint,
            num_threads=num_threads,
        )

    def with_correspondences(self, pairs: NDArray[np.int64]) -> Pair:
        """The same clouds with `pairs` (m, 2) as correspondences; a source point may occur more than once."""
        position = torch.empty_like(self.order)
        position[self.order] = torch.arange(len(self.order))
        matched = torch.from_numpy(np.ascontiguousarray(pairs[:, 1]))
        return self._of_rows(position[torch.from_numpy(pairs[:, 0])], matched)

    def thinned(self, count: int) -> Pair:
        """About `count` of the source's points, evenly; the target stays whole."""
        rows = torch.arange(0, len(self.source), max(1, len(self.source) // count))
        return self._of_rows(rows, _rows(self.correspondences, rows))

    def _of_rows(self, rows: Tensor, correspondences: Tensor | None) -> Pair:
        return replace(
            self,
            source=self.source[rows].contiguous(),
            source_normals=_rows(self.source_normals, rows),
            source_covariances=_rows(self.source_covariances, rows),
            source_intensities=_rows(self.source_intensities, rows),
            order=self.order[rows],
            correspondences=correspondences,
            memory=ops.SearchMemory(),
        )

    def to_omega(self, transformation: Array) -> Tensor:
        """Absolute T_target_source (4, 4) -> pose between the local frames."""
        omega = np.array(transformation, dtype=np.float64)
        omega[:3, 3] += omega[:3, :3] @ self.source_origin - self.target_origin - self.pivot
        return torch.from_numpy(omega)

    def to_absolute(self, omega: Tensor) -> Array:
        transformation: Array = omega.numpy().copy()
        transformation[:3, 3] += (self.target_origin + self.pivot) - transformation[:3, :3] @ self.source_origin
        return transformation

    def moved(self, omega: Tensor, xi: Array) -> Tensor:
        """`omega` after the motion `xi` (6,) about the target's local origin."""
        about_pivot = np.concatenate([xi[:3], xi[3:] + _skew(xi[:3]) @ self.pivot])  # the same velocity field
        return torch.from_numpy(self.constraint.motion(about_pivot) @ omega.numpy())

    def to_local(self, omega: Tensor) -> Tensor:
        """Pose into the target's local frame, which the operators want."""
        local = omega.numpy().copy()
        local[:3, 3] += self.pivot
        return torch.from_numpy(local)


@dataclass(frozen=True)
class Evaluation:
    """An objective at one pose: what ICP reports and what the next step needs."""

    linearization: ops.Linearization
    pair: Pair = field(repr=False)

    @cached_property
    def count(self) -> int:
        return self.linearization.count

    @property
    def cost(self) -> float:
        return self.linearization.cost

    @property
    def fitness(self) -> float:
        return self.count / self.pair.source_count

    @property
    def inlier_rmse(self) -> float:
        """Root mean square Euclidean distance of the correspondences, in the points' unit; 0 without any."""
        return math.sqrt(self.linearization.squared_distance_sum / self.count) if self.count else 0.0

    @property
    def record(self) -> dict[str, Any]:
        return {"value": self.cost, "fitness": self.fitness, "inlier_rmse": self.inlier_rmse, "count": self.count}

    def normal_equations(self) -> tuple[Array, Array]:
        """H (6, 6) and -b (6,) of the step H xi = -b, about the target's local origin (not of point-to-point)."""
        sums = self.linearization.sums.numpy()
        hessian = np.empty((6, 6))
        hessian[_UPPER] = hessian.T[_UPPER] = sums[:21]
        return hessian, -sums[21:27]

    def correspondence_set(self) -> NDArray[np.int32]:
        """Rows (source index, target index), (m, 2), in the caller's indices, by source index."""
        matched = np.empty(len(self.pair.order), dtype=np.int64)
        matched[self.pair.order.numpy()] = self.linearization.indices.numpy()
        rows = np.flatnonzero(matched >= 0)
        pairs = np.empty((len(rows), 2), dtype=np.int32)
        pairs[:, 0], pairs[:, 1] = rows, matched[rows]
        return pairs

    def matched_targets(self) -> NDArray[np.int64]:
        """Indices of the target points of all correspondences, by Morton order of the source."""
        indices: NDArray[np.int64] = self.linearization.indices.numpy()
        return indices[indices >= 0]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of the classical objectives. `kernel`: "l2", "l1", "huber", "cauchy", "gm", "tukey", with its parameter."""

    kernel: str = "l2"
    kernel_parameter: float = 1.0

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # which normals, covariances and colors, "cloud_what"
    rows: ClassVar[int]  # scalar residuals a correspondence that count

    def needs_of(self, cloud: str) -> set[str]:
        """Which of "normals", "covariances" and "colors" the cloud "source" or "target" must have."""
        return {what for name, what in (need.split("_") for need in self.needs) if name == cloud}

    def require(self, what: str, name: str, cloud: PointCloud) -> None:
        """Raises `InputError` about the argument `name` where the cloud has no normals, covariances or colors."""
        if getattr(cloud, what) is None:
            given = f"a cloud of {len(cloud)} points without {what}"
            remedy = "" if what == "colors" else ": see PointCloud.with_normals()"
            raise InputError(name, given, f"{what}, which {type(self).__name__} requires{remedy}")

    def complete(self, cloud: PointCloud) -> PointCloud:
        """The cloud with what can be derived for this objective from what it has."""
        return cloud

    def parameters(self) -> dict[str, float]:
        """What `ops.linearize` has to know besides the kernel."""
        return {}

    def evaluate(self, omega: Tensor, data: Pair) -> Evaluation:
        """Searches the nearest neighbours at `omega` and sums over them, in one pass."""
        linearization = ops.linearize(
            self.kind,
            data.source,
            data.target,
            data.to_local(omega),
            max_distance=data.max_distance,
            kernel=self.kernel,
            kernel_parameter=self.kernel_parameter,
            source_normals=data.source_normals,
            source_covariances=data.source_covariances,
            target_normals=data.target_normals if "target_normals" in self.needs else None,
            target_covariances=data.target_covariances if "target_covariances" in self.needs else None,
            source_intensities=data.source_intensities,
            target_intensities=data.target_intensities,
            **self.parameters(),
            correspondences=data.correspondences,
            memory=data.memory,
            num_threads=data.num_threads,
        )
        return Evaluation(linearization, data)

    def value(self, omega: Tensor, data: Pair) -> Tensor:
        """Sum of rho(r) over the correspondences at `omega`, a scalar; it has no gradient."""
        return torch.tensor(self.evaluate(omega, data).cost, dtype=torch.float64)

    def step(self, omega: Tensor, evaluation: Evaluation) -> Tensor:
        """The pose after one update; `evaluation` is of `omega`. Unchanged where nothing corresponds."""
        if not evaluation.count:
            return omega
        updated, constraint = self._update(omega, evaluation), evaluation.pair.constraint
        return self._permitted(updated, constraint) if constraint.held else updated

    def _update(self, omega: Tensor, evaluation: Evaluation) -> Tensor:
        """Gauss-Newton: H xi = -b about the target's local origin, applied about the pivot."""
        xi = solve_least(*evaluation.normal_equations(), evaluation.pair.constraint.basis)
        return evaluation.pair.moved(omega, xi)

    def _permitted(self, omega: Tensor, constraint: Constraint) -> Tensor:
        """Without what many steps' rounding leaves."""
        return constraint.project(omega)

    def hessian(self, evaluation: Evaluation) -> Array:
        """Gauss-Newton Hessian (6, 6) about the target's local origin, rotation first."""
        return evaluation.normal_equations()[0]

    def gradient(self, evaluation: Evaluation) -> Array:
        """Of the cost at fixed correspondences (6,), about the target's local origin, rotation first."""
        return -evaluation.normal_equations()[1]


def _skew(v: Array) -> Array:
    x, y, z = v.tolist()
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def _textured(target: PointCloud, index: ops.SearchIndex, max_distance: float, num_threads: int | None) -> Tensor:
    """(M, 4) intensities and gradients of a cloud with colors and normals, of Open3D's neighbourhoods."""
    assert target.intensities is not None and target.normals is not None
    radius = 2.0 * max_distance
    return ops.intensity_gradients(
        index, target.intensities, target.normals, k=30, max_distance=radius, num_threads=num_threads
    )


def _rows(values: Tensor | None, order: Tensor) -> Tensor | None:
    return None if values is None else values[order].contiguous()
