"""Doppler ICP (Hexsel, Vhavle and Chen, RSS 2022) as Open3D 0.20's tensor module computes it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.manifold import rotation_to_euler
from dlc_reg.ops._reference import robust_weight
from dlc_reg.pipelines._clouds import Cloud, read_cloud
from dlc_reg.pipelines._estimation import _as_float, _as_int, _require
from dlc_reg.pipelines._run import as_transformation
from dlc_reg.registration.frame import Evaluation, Objective
from dlc_reg.registration.steps import euler_motion, solve_least
from dlc_reg.t.pipelines._estimation import TransformationEstimation, _pairs, kernel_options, like, products
from dlc_reg.t.pipelines._robust_kernel import RobustKernel, as_robust_kernel

Array = NDArray[np.float64]

_SHORTEST = 1e-3  # [s], a period that Open3D takes for too small


class TransformationEstimationForDopplerICP(TransformationEstimation):
    """Point-to-plane and, weighted by `lambda_doppler` (0 to 1), the radial velocities that the motion implies.

    The source needs "dopplers" (N,), its points' measured radial velocities [unit of length / s], and "directions"
    (N, 3), the unit vectors from the sensor to them in the vehicle's frame; the target needs normals. The pose is taken
    for the vehicle's motion during `period` [s], at a constant velocity. `transform_vehicle_to_sensor` (4, 4): the
    sensor's pose in the vehicle's frame. With `reject_dynamic_outliers`, correspondences whose velocity is off by more
    than `doppler_outlier_threshold` have no say from step `outlier_rejection_min_iteration` on; the kernels hold from
    their `..._min_iteration` on. `compute_rmse` is that of `TransformationEstimationPointToPlane`.
    """

    period: float
    lambda_doppler: float
    reject_dynamic_outliers: bool
    doppler_outlier_threshold: float
    outlier_rejection_min_iteration: int
    geometric_robust_loss_min_iteration: int
    doppler_robust_loss_min_iteration: int
    geometric_kernel: RobustKernel
    doppler_kernel: RobustKernel
    transform_vehicle_to_sensor: Any

    def __init__(self, *values: Any, **options: Any) -> None:
        """`()`, `(lambda_doppler)`, `(other)`, or the attributes by name or in their order, `period` first."""
        super().__init__()
        if len(values) == 1 and not options:
            copied = {name: getattr(values[0], name, None) for name in _DEFAULTS}
            options = copied if hasattr(values[0], "lambda_doppler") else {"lambda_doppler": values[0]}
            values = ()
        elif len(values) > len(_DEFAULTS) or set(options) - set(list(_DEFAULTS)[len(values) :]):
            raise TypeError(f"TransformationEstimationForDopplerICP takes {', '.join(_DEFAULTS)}")
        for name, value in (_DEFAULTS | dict(zip(_DEFAULTS, values, strict=False)) | options).items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _DEFAULTS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name.endswith("_kernel"):
            value = as_robust_kernel(value)
        elif name == "transform_vehicle_to_sensor":
            as_transformation(name, value)
        elif name == "reject_dynamic_outliers":
            value = bool(value)
        else:
            value = _as_int(name, value) if name.endswith("_iteration") else _as_float(name, value)
        if name == "lambda_doppler" and not 0 <= value <= 1:
            raise InputError(name, f"{value:g}", "a number from 0 to 1")
        if name == "period" and not abs(value) >= _SHORTEST:
            raise InputError(name, f"{value:g}", f"a time [s] of at least {_SHORTEST:g}")
        super().__setattr__(name, value)

    def compute_transformation(
        self, source: Any, target: Any, correspondences: Any, current_transform: Any = None, iteration: int = 0
    ) -> Any:
        """One update (4, 4) of step `iteration` at `current_transform`, which has moved `source` already."""
        s, t = self._complete(read_cloud(source, "source"), read_cloud(target, "target"))
        rows = _pairs(correspondences, len(s.points))
        if not len(rows):
            return like(source, np.eye(4))
        pose = as_transformation("current_transform", np.eye(4) if current_transform is None else current_transform)
        return like(source, euler_motion(self._step(s.take(rows[:, 0]), t.take(rows[:, 1]), pose, iteration)))

    def _step(self, s: Cloud, t: Cloud, pose: Array, iteration: int) -> Array:
        """The update (6,) about the frame's origin, for matched clouds, the source where `pose` has moved it."""
        p, q, normals = s.points, t.points, cast(Array, t.normals)
        directions = cast(Array, s.directions)
        lever = as_transformation("transform_vehicle_to_sensor", self.transform_vehicle_to_sensor)[:3, 3]
        turning = -rotation_to_euler(torch.from_numpy(np.ascontiguousarray(pose[:3, :3]))).numpy() / self.period
        moving = -pose[:3, 3] / self.period + np.cross(turning, lever)
        off = cast(Array, s.dopplers) + directions @ moving
        geometry = np.concatenate([np.cross(p, normals), normals], axis=1)
        velocity = np.concatenate([np.cross(directions, lever), -directions], axis=1) / self.period
        hessian, right = np.zeros((6, 6)), np.zeros(6)
        static = np.abs(off) <= self.doppler_outlier_threshold
        if not self.reject_dynamic_outliers or iteration < self.outlier_rejection_min_iteration:
            static[:] = True
        share = self.lambda_doppler
        for rows, residual, part, kernel, since in (
            (geometry, ((p - q) * normals).sum(axis=1), 1 - share, self.geometric_kernel, "geometric"),
            (velocity, off, share, self.doppler_kernel, "doppler"),
        ):
            rows, residual = np.sqrt(part) * rows[static], np.sqrt(part) * residual[static]
            weights = np.ones(len(residual))
            if iteration >= getattr(self, f"{since}_robust_loss_min_iteration"):
                options = kernel_options(kernel)
                weights = robust_weight(
                    options["kernel"], options["kernel_parameter"], torch.from_numpy(residual)
                ).numpy()
            hessian += rows.T @ (weights[:, None] * rows)
            right -= rows.T @ (weights * residual)
        return solve_least(hessian, right)

    def _objective_of(self, source: Cloud) -> Doppler:
        return Doppler(estimation=self, source=source)

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        return products(s, t, i, j)

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        return t.normals is not None

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        _require("DopplerICP", "target", t, "normals")
        for what in ("dopplers", "directions"):
            if getattr(s, what) is None:
                raise InputError(
                    "source", f"a cloud of {len(s.points)} points without {what}", f"the attribute {what!r}"
                )
        return s, t

    def __repr__(self) -> str:
        return f"{type(self).__name__} with lambda_doppler: {self.lambda_doppler:f}"


_DEFAULTS: dict[str, Any] = {
    "period": 0.1,
    "lambda_doppler": 0.01,
    "reject_dynamic_outliers": False,
    "doppler_outlier_threshold": 2.0,
    "outlier_rejection_min_iteration": 2,
    "geometric_robust_loss_min_iteration": 0,
    "doppler_robust_loss_min_iteration": 2,
    "geometric_kernel": RobustKernel(),
    "doppler_kernel": RobustKernel(),
    "transform_vehicle_to_sensor": np.eye(4),
}


@dataclass(frozen=True, kw_only=True)
class Doppler(Objective):
    """The objective of one registration: it counts its steps. Information and covariance are point-to-plane's alone."""

    estimation: TransformationEstimationForDopplerICP
    source: Cloud
    steps: Iterator[int] = field(default_factory=itertools.count)

    kind = "point_to_plane"
    needs = ("target_normals",)
    rows = 1

    def _update(self, omega: Tensor, evaluation: Evaluation) -> Tensor:
        pair = evaluation.pair
        indices = evaluation.linearization.indices.numpy()
        s = self.source.take(pair.order.numpy()[indices >= 0])
        pose = pair.to_absolute(omega)
        s = replace(s, points=s.points @ pose[:3, :3].T + pose[:3, 3])
        rows = indices[indices >= 0]
        target = pair.target.points.numpy()[rows].astype(np.float64) + pair.target_origin
        t = Cloud(target, cast(Tensor, pair.target_normals).numpy()[rows].astype(np.float64))
        update = euler_motion(self.estimation._step(s, t, pose, next(self.steps)))
        return pair.to_omega(update @ pose)
