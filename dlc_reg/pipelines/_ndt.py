"""The normal distributions transform, point to distribution, by the names and with the arithmetic of Open3D 0.20.

The target is a Gaussian in each voxel; Gauss-Newton lowers the sum of the source points' squared Mahalanobis distances
to those of their voxel and, unless `neighbor_search_type` is 0, of its six neighbours (Magnusson, 2009, in the variant
that Open3D 0.20 has). Float64, in the frame given; 0.19 has no such function.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.pipelines._clouds import Cloud, check_finite, drop_non_finite, read_cloud
from dlc_reg.pipelines._estimation import _as_float, _as_int
from dlc_reg.pipelines._run import IDENTITY, RegistrationResult, as_transformation, nothing, wrong
from dlc_reg.registration.steps import euler_motion

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_CONDITION = 1e12  # of the normal equations, beyond which no step is taken
_LEAST = 6  # residuals for a step
_LARGEST = 2.0**62  # cells that can be numbered
_OFFSETS = np.array([[0, 0, 0], [-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]])


@dataclass
class NormalDistributionsTransformOption:
    """What the transform may be told; raises `InputError` for what cannot be.

    `voxel_size` in the points' unit; voxels with fewer than `min_points_per_voxel` (at least 4) target points have no
    Gaussian; `covariance_regularization`, in (0, 1), is the least ratio of a variance to the largest;
    `transformation_epsilon` (norm of the update) and `relative_objective` (change of the mean objective) end the
    iteration; `outlier_threshold` is the largest squared Mahalanobis distance that counts; `neighbor_search_type`: 1
    for the voxel and its six neighbours, 0 for the voxel alone.
    """

    voxel_size: float = 1.0
    min_points_per_voxel: int = 6
    covariance_regularization: float = 1e-3
    transformation_epsilon: float = 1e-6
    relative_objective: float = 1e-6
    max_iteration: int = 30
    outlier_threshold: float = 9.0
    neighbor_search_type: int = 1

    def __post_init__(self) -> None:
        if hasattr(self.voxel_size, "min_points_per_voxel"):  # the copy of another
            other = self.voxel_size
            for item in fields(self):
                setattr(self, item.name, getattr(other, item.name))
        self.check()

    def check(self) -> None:
        """Raises `InputError`, or `TypeError`, for the first value that cannot be."""
        for item in fields(self):
            value, read = getattr(self, item.name), _as_int if isinstance(item.default, int) else _as_float
            number = read(item.name, value)
            least = {"min_points_per_voxel": 4, "max_iteration": 1, "neighbor_search_type": 0}.get(item.name)
            most = {"neighbor_search_type": 1.0, "covariance_regularization": 1.0}.get(item.name, float("inf"))
            fits = 0 < number < most if least is None else least <= number <= most
            if not fits:
                low = "above 0" if least is None else f"of at least {least}"
                raise InputError(
                    item.name, f"{number:g}", f"a number {low}" + (f", up to {most:g}" if most < 9 else "")
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name):g}' for f in fields(self))})"


_OPTION = NormalDistributionsTransformOption()


def registration_ndt(
    source: Any, target: Any, option: NormalDistributionsTransformOption = _OPTION, init: Any = IDENTITY
) -> RegistrationResult:
    """The normal distributions transform from `init` (4, 4), T_target_source.

    A source point's correspondence is the target point next to the mean of the Gaussian that it is nearest to; fitness
    and inlier RMSE are over these. `status` says how it ended, a target too regular for a step (`SINGULAR`) and a start
    too far away for one among the reasons.

    Raises:
        InputError: no voxel with enough points, a non-finite target or init, an option that cannot be.
        TypeError: anything that is not a cloud, a 4x4 matrix or an option.
    """
    if not isinstance(option, NormalDistributionsTransformOption):
        if type(option).__name__ != "NormalDistributionsTransformOption":
            raise TypeError(wrong("option", option, "NormalDistributionsTransformOption"))
        option = NormalDistributionsTransformOption(option)
    option.check()
    pose = as_transformation("init", init)
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    check_finite(t, "target")
    total = len(s.points)
    s, kept = drop_non_finite(Cloud(s.points))
    if not len(s.points) or not len(t.points):
        return nothing(pose)
    gaussians = _Gaussians(t.points, option)
    result, status, before = RegistrationResult(), Status.MAX_ITERATIONS, np.inf
    for step in range(option.max_iteration + 1):
        moved = s.points @ pose[:3, :3].T + pose[:3, 3]
        matches = list(gaussians.near(moved))
        count = sum(len(rows) for rows, _, _ in matches)
        value = sum(float(np.square(residuals).sum()) for _, _, residuals in matches) / max(count, 1)
        result.history.append({"iteration": step, "value": value, "count": count})
        if status is not Status.MAX_ITERATIONS or step == option.max_iteration:
            break
        if count < _LEAST:
            status = Status.NO_CORRESPONDENCES
            break
        if step and abs(before - value) / max(abs(before), np.finfo(float).eps) < option.relative_objective:
            status = Status.CONVERGED
            break
        before = value
        hessian, gradient = gaussians.normal_equations(moved, matches)
        curvatures = np.linalg.eigvalsh(hessian)
        if not curvatures[0] > curvatures[-1] / _CONDITION:
            status = Status.SINGULAR
            break
        update = np.asarray(np.linalg.solve(hessian, -gradient), dtype=np.float64)
        pose = euler_motion(update) @ pose
        result.iterations = step + 1
        if np.linalg.norm(update) < option.transformation_epsilon:
            status = Status.CONVERGED
    if status in (Status.NO_CORRESPONDENCES, Status.SINGULAR):
        warnings.warn(f"registration_ndt: {status}", stacklevel=2)
    result.transformation, result.status = pose, status
    _judge(result, gaussians, t.points, moved, matches, total)
    if kept is not None:
        result.correspondence_set[:, 0] = kept[result.correspondence_set[:, 0]]
    return result


class _Gaussians:
    """The target's voxels: `codes` (V,) sorted, `means` (V, 3), the `nearest` point to each (V,), and `whitening`
    (V, 3, 3), W with W^T W the inverse covariance."""

    def __init__(self, points: Array, option: NormalDistributionsTransformOption) -> None:
        self.option = option
        cells = self._cells(points)
        self.low = cells.min(axis=0)
        self.shape = cells.max(axis=0) - self.low + 1
        if float(np.prod(self.shape.astype(float))) > _LARGEST:
            raise InputError(
                "voxel_size", f"{option.voxel_size:g}", "larger voxels: the target spans too many of these"
            )
        codes, inverse, counts = np.unique(self._codes(cells), return_inverse=True, return_counts=True)
        means = np.stack([np.bincount(inverse, column) / counts for column in points.T], axis=1)
        apart = points - means[inverse]
        products = apart[:, :, None] * apart[:, None, :]
        sums = np.stack([np.bincount(inverse, column) for column in products.reshape(-1, 9).T], axis=1).reshape(
            -1, 3, 3
        )
        variances, axes = np.linalg.eigh(sums / np.maximum(counts - 1, 1)[:, None, None])
        used = (counts >= option.min_points_per_voxel) & (variances[:, -1] > 0)
        if not used.any():
            raise InputError(
                "option",
                f"voxels of {option.voxel_size:g} of which none has {option.min_points_per_voxel} target points",
                "a larger voxel_size or a smaller min_points_per_voxel",
            )
        variances = np.maximum(variances, option.covariance_regularization * variances[:, -1:])[used]
        axes = axes[used]
        order = np.lexsort((np.arange(len(points)), np.square(apart).sum(axis=1), inverse))
        self.nearest = order[np.searchsorted(inverse[order], np.arange(len(codes)))][used]
        self.codes, self.means = codes[used], means[used]
        self.whitening = (axes / np.sqrt(variances)[:, None, :]).transpose(0, 2, 1)

    def near(self, points: Array) -> Iterator[tuple[Integers, Integers, Array]]:
        """For each neighbouring voxel: the points near its Gaussian, the voxels, and the whitened residuals (m, 3)."""
        cells = self._cells(points)
        for offset in _OFFSETS if self.option.neighbor_search_type else _OFFSETS[:1]:
            cell = cells + offset
            rows = np.flatnonzero(((cell >= self.low) & (cell < self.low + self.shape)).all(axis=1))
            codes = self._codes(cell[rows])
            voxels = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
            there = self.codes[voxels] == codes
            rows, voxels = rows[there], voxels[there]
            apart = points[rows] - self.means[voxels]
            residuals = np.einsum("nij,nj->ni", self.whitening[voxels], apart)
            close = np.square(residuals).sum(axis=1) <= self.option.outlier_threshold
            yield rows[close], voxels[close], residuals[close]

    def normal_equations(self, points: Array, matches: list[tuple[Integers, Integers, Array]]) -> tuple[Array, Array]:
        """H (6, 6) and gradient (6,) of half the sum of squared distances, about the frame's origin, rotation first."""
        hessian, gradient = np.zeros((6, 6)), np.zeros(6)
        for rows, voxels, residuals in matches:
            p, axes = points[rows], self.whitening[voxels]
            for axis, residual in zip(axes.transpose(1, 0, 2), residuals.T, strict=True):
                jacobian = np.concatenate([np.cross(p, axis), axis], axis=1)
                hessian += jacobian.T @ jacobian
                gradient += jacobian.T @ residual
        return hessian, gradient

    def _cells(self, points: Array) -> Integers:
        scaled = points / self.option.voxel_size
        if np.abs(scaled).max(initial=0.0) >= _LARGEST:
            raise InputError("voxel_size", f"{self.option.voxel_size:g}", "larger voxels for coordinates like these")
        return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)

    def _codes(self, cells: Integers) -> Integers:
        x, y, z = (cells - self.low).T
        codes: Integers = (x * self.shape[1] + y) * self.shape[2] + z
        return codes


def _judge(
    result: RegistrationResult,
    gaussians: _Gaussians,
    target: Array,
    moved: Array,
    matches: list[tuple[Integers, Integers, Array]],
    total: int,
) -> None:
    """Correspondences, fitness and RMSE, by each point's nearest Gaussian; of two as near the later one, as there."""
    best, partner = np.full(len(moved), np.inf), np.full(len(moved), -1)
    for rows, voxels, residuals in matches:
        distances = np.square(residuals).sum(axis=1)
        better = distances <= best[rows]
        best[rows[better]], partner[rows[better]] = distances[better], gaussians.nearest[voxels[better]]
    rows = np.flatnonzero(partner >= 0)
    result.correspondence_set = np.stack([rows, partner[rows]], axis=1).astype(np.int32)
    if len(rows):
        gaps = moved[rows] - target[partner[rows]]
        result.fitness = len(rows) / total
        result.inlier_rmse = float(np.sqrt(np.square(gaps).sum(axis=1).mean()))
