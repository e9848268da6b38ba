"""Robust kernels, estimation methods and convergence criteria by the names and with the defaults of Open3D 0.20."""

from __future__ import annotations

import operator
from typing import Any, SupportsFloat, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines._clouds import Cloud, covariances_from_normals, prepare_pair, read_cloud, read_correspondences
from dlc_reg.registration.frame import Objective
from dlc_reg.registration.icp import estimate_update
from dlc_reg.registration.learned.apply import estimate, shipped
from dlc_reg.registration.learned.weights import load_model
from dlc_reg.registration.objectives import Generalized, PointToPlane, PointToPoint, Symmetric

Array = NDArray[np.float64]


class RobustKernel:
    """Base of the robust kernels. `weight(residual)` is the factor of r^2 in iteratively reweighted least squares."""

    _name = ""

    def __init__(self) -> None:
        if type(self) is RobustKernel:
            raise TypeError("RobustKernel is abstract: use L2Loss, L1Loss, HuberLoss, CauchyLoss, GMLoss or TukeyLoss")

    def weight(self, residual: SupportsFloat) -> float:
        return self._weight(abs(float(residual)))

    def _weight(self, e: float) -> float:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"RobustKernel::{type(self).__name__}"


class L2Loss(RobustKernel):
    """rho(r) = r^2 / 2, w(r) = 1."""

    _name = "l2"

    def __init__(self, other: L2Loss | None = None) -> None:
        _check_copy(self, other)

    def _weight(self, e: float) -> float:
        return 1.0


class L1Loss(RobustKernel):
    """rho(r) = |r|, w(r) = 1 / |r|."""

    _name = "l1"

    def __init__(self, other: L1Loss | None = None) -> None:
        _check_copy(self, other)

    def _weight(self, e: float) -> float:
        return 1.0 / e if e > 0 else float("inf")


class _ScaledKernel(RobustKernel):
    def __init__(self, k: Any) -> None:
        self._k = k.k if isinstance(k, type(self)) else _as_float("k", k)

    @property
    def k(self) -> float:
        """Parameter of the loss, in the unit of the residual (of its square for `GMLoss`)."""
        return self._k

    @k.setter
    def k(self, value: SupportsFloat) -> None:
        self._k = _as_float("k", value)

    def __repr__(self) -> str:
        return f"RobustKernel::{type(self).__name__} with k={self.k:f}"


class HuberLoss(_ScaledKernel):
    """w(r) = 1 where |r| <= k, k / |r| beyond."""

    _name = "huber"

    def _weight(self, e: float) -> float:
        return self.k / e if e > self.k else 1.0


class CauchyLoss(_ScaledKernel):
    """w(r) = 1 / (1 + (r / k)^2)."""

    _name = "cauchy"

    def _weight(self, e: float) -> float:
        return float(1.0 / (1.0 + np.float64(e) ** 2 / np.float64(self.k) ** 2))


class GMLoss(_ScaledKernel):
    """Geman-McClure: w(r) = k / (k + r^2)^2."""

    _name = "gm"

    def _weight(self, e: float) -> float:
        return float(np.float64(self.k) / (self.k + e * e) ** 2)


class TukeyLoss(_ScaledKernel):
    """w(r) = (1 - (r / k)^2)^2 where |r| <= k, 0 beyond."""

    _name = "tukey"

    def _weight(self, e: float) -> float:
        return 0.0 if e > self.k else float((1.0 - (np.float64(e) / self.k) ** 2) ** 2)


class TransformationEstimation:
    """Base of the estimation methods."""

    def __init__(self) -> None:
        if type(self) is TransformationEstimation:
            raise TypeError("TransformationEstimation is abstract: use one of the TransformationEstimation... classes")

    def compute_rmse(self, source: Any, target: Any, corres: Any) -> float:
        """Root mean square of this method's residual, the clouds as they lie; 0 without correspondences.

        `corres`: (m, 2) integers, rows (source index, target index).
        """
        s, t = read_cloud(source, "source"), read_cloud(target, "target")
        pairs = read_correspondences(corres, len(s.points), len(t.points))
        if not len(pairs) or not self._usable(s, t):
            return 0.0
        squared = self._squared_residuals(s, t, pairs[:, 0], pairs[:, 1])
        return float(np.sqrt(squared.mean()))

    def compute_transformation(self, source: Any, target: Any, corres: Any) -> Array:
        """One update (4, 4) float64 that takes the source towards the target; identity without correspondences."""
        s, t = read_cloud(source, "source"), read_cloud(target, "target")
        pairs = read_correspondences(corres, len(s.points), len(t.points))
        if not len(pairs) or not self._usable(s, t):
            return np.eye(4)
        pair = prepare_pair(s, t, self._objective(), max_distance=np.inf)
        return estimate_update(self._objective(), pair, pairs)

    def _objective(self) -> Objective:
        raise NotImplementedError

    def _objective_of(self, source: Cloud) -> Objective:
        """The objective for this source, where it needs more of it than the clouds that `prepare_pair` makes."""
        return self._objective()

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        raise NotImplementedError

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        """False where Open3D answers with 0 and identity for want of normals or covariances."""
        return True

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        """The clouds with what the method needs; raises `InputError` where the caller has to give it."""
        return s, t

    def _start(self, s: Cloud, t: Cloud, init: Array) -> Array:
        """Where the iteration begins."""
        return init

    def __repr__(self) -> str:
        return type(self).__name__


class TransformationEstimationPointToPoint(TransformationEstimation):
    """Closed form for corresponding points (Umeyama, PAMI 1991), with a scale if `with_scaling`."""

    def __init__(self, with_scaling: Any = False) -> None:
        if isinstance(with_scaling, TransformationEstimationPointToPoint):
            with_scaling = with_scaling.with_scaling
        self.with_scaling = with_scaling

    @property
    def with_scaling(self) -> bool:
        """True: the transformation is [[c R, t], [0, 1]]; False: c = 1."""
        return self._with_scaling

    @with_scaling.setter
    def with_scaling(self, value: bool) -> None:
        if not isinstance(value, (bool, np.bool_, int)):
            raise TypeError(f"with_scaling: got {type(value).__name__}; expected bool")
        self._with_scaling = bool(value)

    def _objective(self) -> PointToPoint:
        return PointToPoint(with_scaling=self.with_scaling)

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        return cast(Array, ((s.points[i] - t.points[j]) ** 2).sum(axis=1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(with_scaling={self.with_scaling})"


class TransformationEstimationLearned(TransformationEstimationPointToPoint):
    """Not in Open3D: a learned model first finds the basin, from `init` or from anywhere; then point-to-point.

    `weights`: a file or a shipped name for `load_model`; None: the model that comes with the package.
    """

    def __init__(self, weights: Any = None) -> None:
        super().__init__()
        self._model = shipped() if weights is None else load_model(weights)

    def _start(self, s: Cloud, t: Cloud, init: Array) -> Array:
        centers = [cloud.points.mean(axis=0) for cloud in (s, t)]
        points = [torch.from_numpy((c.points - m).astype(np.float32)) for c, m in zip((s, t), centers, strict=True)]
        inward, outward = np.eye(4), np.eye(4)
        inward[:3, 3], outward[:3, 3] = centers
        local = torch.from_numpy(np.linalg.inv(outward) @ init @ inward)
        found: Array = outward @ estimate(self._model, points[0], points[1], local).numpy() @ np.linalg.inv(inward)
        return found


class _KernelEstimation(TransformationEstimation):
    def __init__(self, kernel: Any = None) -> None:
        if isinstance(kernel, type(self)):
            kernel = kernel.kernel
        self.kernel = L2Loss() if kernel is None else kernel

    @property
    def kernel(self) -> RobustKernel:
        """Robust kernel used in the optimisation."""
        return self._kernel

    @kernel.setter
    def kernel(self, value: RobustKernel) -> None:
        self._kernel = _as_kernel(value)

    def _kernel_options(self) -> dict[str, Any]:
        return {"kernel": self.kernel._name, "kernel_parameter": getattr(self.kernel, "k", 1.0)}


class TransformationEstimationPointToPlane(_KernelEstimation):
    """Distance to the target's tangent plane (Chen and Medioni, 1992). The target needs normals."""

    def _objective(self) -> PointToPlane:
        return PointToPlane(**self._kernel_options())

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        return cast(Array, ((s.points[i] - t.points[j]) * cast(Array, t.normals)[j]).sum(axis=1) ** 2)

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        return t.normals is not None

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        _require("PointToPlane", "target", t, "normals")
        return s, t


class TransformationEstimationSymmetric(_KernelEstimation):
    """Distance along the sum of both normals (Rusinkiewicz, SIGGRAPH 2019). Both clouds need normals."""

    def _objective(self) -> Symmetric:
        return Symmetric(**self._kernel_options())

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        ns, nt = cast(Array, s.normals)[i], cast(Array, t.normals)[j]
        sign = np.where((ns * nt).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
        return cast(Array, ((s.points[i] - t.points[j]) * (nt + sign * ns)).sum(axis=1) ** 2)

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        return bool(self._complete(s, t))

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        _require("Symmetric", "source", s, "normals")
        _require("Symmetric", "target", t, "normals")
        return s, t


class TransformationEstimationForGeneralizedICP(_KernelEstimation):
    """Plane-to-plane (Segal et al., RSS 2009). `epsilon`: variance along the normal relative to that in the plane.

    A cloud without covariances gets them from its normals, one without normals from its 20 nearest neighbours.
    """

    def __init__(self, epsilon: Any = 0.001, kernel: Any = None) -> None:
        if isinstance(epsilon, TransformationEstimationForGeneralizedICP):
            epsilon, kernel = epsilon.epsilon, epsilon.kernel
        elif isinstance(epsilon, RobustKernel):  # Open3D's overload (kernel)
            epsilon, kernel = 0.001, epsilon
        self.epsilon = epsilon
        super().__init__(kernel)

    @property
    def epsilon(self) -> float:
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: SupportsFloat) -> None:
        self._epsilon = _as_float("epsilon", value)

    def _objective(self) -> Generalized:
        return Generalized(**self._kernel_options())

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        d = s.points[i] - t.points[j]
        values, vectors = np.linalg.eigh(cast(Array, s.covariances)[i] + cast(Array, t.covariances)[j])
        # Open3D's figure is d^T M^(-1/2) d, not the Mahalanobis d^T M^-1 d that it minimises
        return cast(Array, (np.einsum("nij,ni->nj", vectors, d) ** 2 / np.sqrt(values)).sum(axis=1))

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        return s.covariances is not None and t.covariances is not None

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        return covariances_from_normals(s, self.epsilon), covariances_from_normals(t, self.epsilon)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon:g})"


class ICPConvergenceCriteria:
    """ICP stops when both |change of fitness| and |change of inlier RMSE| fall below these, or after `max_iteration`.

    The changes are absolute (the second in the points' unit), whatever the names say: Open3D's arithmetic.
    """

    relative_fitness: float
    relative_rmse: float
    max_iteration: int

    def __init__(self, relative_fitness: Any = 1e-6, relative_rmse: Any = 1e-6, max_iteration: Any = 30) -> None:
        if isinstance(relative_fitness, ICPConvergenceCriteria):
            other = relative_fitness
            relative_fitness, relative_rmse = other.relative_fitness, other.relative_rmse
            max_iteration = other.max_iteration
        self.relative_fitness = relative_fitness
        self.relative_rmse = relative_rmse
        self.max_iteration = max_iteration

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("relative_fitness", "relative_rmse", "max_iteration"):
            raise AttributeError(f"ICPConvergenceCriteria has no attribute {name!r}")
        super().__setattr__(name, _as_int(name, value) if name == "max_iteration" else _as_float(name, value))

    def __repr__(self) -> str:
        return (
            f"ICPConvergenceCriteria(relative_fitness={self.relative_fitness:e}, "
            f"relative_rmse={self.relative_rmse:e}, max_iteration={self.max_iteration})"
        )


def _require(method: str, name: str, cloud: Cloud, what: str) -> None:
    """Raises `InputError`, with Open3D's words in it, where a cloud lacks "normals" or "colors"."""
    if getattr(cloud, what) is not None:
        return
    needed = f"{what}: {method} requires {name} pointcloud to have {what}"
    if what == "normals":
        needed = (
            f"normals, which {method} requires: call {name}.estimate_normals() on an Open3D cloud, "
            f"or pass PointCloud.from_any({name}).with_normals()"
        )
    raise InputError(name, f"a cloud of {len(cloud.points)} points without {what}", needed)


def _check_copy(kernel: RobustKernel, other: Any) -> None:
    if other is not None and not isinstance(other, type(kernel)):
        raise TypeError(f"{type(kernel).__name__}: got {type(other).__name__}; expected no argument")


def _as_kernel(value: Any) -> RobustKernel:
    if isinstance(value, RobustKernel):
        return value
    # a kernel of Open3D's own, in code that migrates step by step
    name = type(value).__name__ if hasattr(value, "weight") else ""
    if name in ("L2Loss", "L1Loss"):
        return L2Loss() if name == "L2Loss" else L1Loss()
    for kind in (HuberLoss, CauchyLoss, GMLoss, TukeyLoss):
        if name == kind.__name__:
            return kind(value.k)
    raise TypeError(f"kernel: got {type(value).__name__}; expected a RobustKernel such as TukeyLoss(k)")


def _as_float(name: str, value: Any) -> float:
    if isinstance(value, (str, bytes, np.ndarray)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a number")
    return float(value)


def _as_int(name: str, value: Any) -> int:
    if not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}: got {type(value).__name__} {value!r}; expected an integer")
    return operator.index(value)
