"""Fast global registration (Zhou, Park and Koltun, ECCV 2016), by the names and with the defaults of Open3D 0.20.

The arithmetic is Open3D's, its peculiarities included: both clouds are scaled to a radius of 1 (unless
`use_absolute_scale`), mu starts at that radius in the points' unit and falls every fourth step until it is below
`maximum_correspondence_distance`, and fewer than 10 correspondences give identity. What is random, the choice of
triples, follows a `seed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.pipelines._checkers import CorrespondenceCheckerBasedOnEdgeLength, Samples
from dlc_reg.pipelines._clouds import Cloud, check_finite, read_cloud, read_correspondences
from dlc_reg.pipelines._estimation import _as_float, _as_int
from dlc_reg.pipelines._features import read_features
from dlc_reg.pipelines._run import RegistrationResult, evaluate, nothing, wrong
from dlc_reg.registration.steps import euler_motion, solve_least

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]

_BATCH = 4096
_TRIALS = 100  # triples tried a correspondence
_LEAST = 10  # correspondences


class FastGlobalRegistrationOption:
    """What fast global registration may be told.

    `decrease_mu` with `division_factor` for graduated non-convexity; `maximum_correspondence_distance` ends it and is
    the distance at which the result is judged. `tuple_test` keeps at most `maximum_tuple_count` triples of
    correspondences whose sides agree to the factor `tuple_scale`. Lengths are of the clouds scaled to a radius of 1
    unless `use_absolute_scale`. As in Open3D, the functions' default option has `decrease_mu`, one made here has not.
    """

    division_factor: float
    use_absolute_scale: bool
    decrease_mu: bool
    maximum_correspondence_distance: float
    iteration_number: int
    tuple_scale: float
    maximum_tuple_count: int
    tuple_test: bool

    def __init__(
        self,
        division_factor: Any = 1.4,
        use_absolute_scale: bool = False,
        decrease_mu: bool = False,
        maximum_correspondence_distance: float = 0.025,
        iteration_number: int = 64,
        tuple_scale: float = 0.95,
        maximum_tuple_count: int = 1000,
        tuple_test: bool = True,
    ) -> None:
        given = (division_factor, use_absolute_scale, decrease_mu, maximum_correspondence_distance, iteration_number,
                 tuple_scale, maximum_tuple_count, tuple_test)  # fmt: skip
        for name, value in zip(_KINDS, given, strict=True):
            setattr(self, name, getattr(division_factor, name, value))  # the first may be an option to copy

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _KINDS:
            raise AttributeError(f"FastGlobalRegistrationOption has no attribute {name!r}")
        super().__setattr__(name, _KINDS[name](name, value))

    def __repr__(self) -> str:
        lines = (f"{name}={_text(getattr(self, name))},\n" for name in _KINDS)
        return f"{type(self).__name__}(\n{''.join(lines)})"


def _as_bool(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_, int)):
        raise TypeError(f"{name}: got {type(value).__name__}; expected bool")
    return bool(value)


_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "division_factor": _as_float,
    "use_absolute_scale": _as_bool,
    "decrease_mu": _as_bool,
    "maximum_correspondence_distance": _as_float,
    "iteration_number": _as_int,
    "tuple_scale": _as_float,
    "maximum_tuple_count": _as_int,
    "tuple_test": _as_bool,
}
_OPTION = FastGlobalRegistrationOption(decrease_mu=True)


def registration_fgr_based_on_correspondence(
    source: Any,
    target: Any,
    corres: Any,
    option: FastGlobalRegistrationOption = _OPTION,
    *,
    seed: int = 0,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Fast global registration of given correspondences `corres` (m, 2), rows (source index, target index).

    The result's fitness, RMSE and correspondences are those of `evaluate_registration` at the pose found, within
    `option.maximum_correspondence_distance`. With fewer than 10 correspondences, after the test of triples if it is
    asked for, the pose is identity, as in Open3D, and `verdict_reasons` says so. Open3D has neither `seed` nor
    `num_threads`; the same seed gives the same bytes, whatever the number of threads.

    Raises:
        InputError: indices that a cloud has not, non-finite points, clouds of a single place, factors that cannot be.
        TypeError: anything that is not a cloud, correspondences or an option.
    """
    s, t, option = _prepared(source, target, option)
    pairs = read_correspondences(corres, len(s.points), len(t.points))
    return _register(s, t, pairs, option, seed, num_threads)


def registration_fgr_based_on_feature_matching(
    source: Any,
    target: Any,
    source_feature: Any,
    target_feature: Any,
    option: FastGlobalRegistrationOption = _OPTION,
    *,
    seed: int = 0,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Fast global registration of the correspondences whose features are each other's nearest.

    Features are `Feature`s, Open3D's or ours, one column a point of their cloud. Otherwise as
    `registration_fgr_based_on_correspondence`.
    """
    s, t, option = _prepared(source, target, option)
    a, b = read_features(source_feature, "source_feature"), read_features(target_feature, "target_feature")
    for name, features, cloud in (("source_feature", a, s), ("target_feature", b, t)):
        if len(features) != len(cloud.points):
            raise InputError(name, f"{len(features)} descriptors", f"{len(cloud.points)}, one a point")
    pairs = ops.mutual_matches(a, b, num_threads=num_threads)[0].numpy() if len(a) and len(b) else np.zeros((0, 2), int)
    return _register(s, t, pairs, option, seed, num_threads)


def _register(
    s: Cloud, t: Cloud, pairs: Pairs, option: FastGlobalRegistrationOption, seed: int, num_threads: int | None
) -> RegistrationResult:
    if not len(s.points) or not len(t.points):
        return nothing()
    centers = [cloud.points.mean(axis=0) for cloud in (s, t)]
    local = [cloud.points - center for cloud, center in zip((s, t), centers, strict=True)]
    radius = max(float(np.linalg.norm(points, axis=1).max()) for points in local)
    if radius <= 0:
        raise InputError("source", "clouds whose points are all at one place", "clouds of some extent")
    if option.tuple_test:
        pairs = _triples(s, t, pairs, option, np.random.default_rng(seed))
    unit = 1.0 if option.use_absolute_scale else radius
    p, q = local[0][pairs[:, 0]] / unit, local[1][pairs[:, 1]] / unit
    few = len(pairs) < _LEAST
    inverse = np.eye(4) if few else _optimize(p, q, unit, option)
    transformation = np.eye(4)
    transformation[:3, :3] = inverse[:3, :3].T
    transformation[:3, 3] = centers[1] - inverse[:3, :3].T @ (centers[0] + unit * inverse[:3, 3])
    result = evaluate(s, t, option.maximum_correspondence_distance, transformation, num_threads)
    result.settings |= {"seed": seed, "fgr_correspondences": len(pairs)}
    if few:
        result.verdict_reasons.append(f"only {len(pairs)} correspondences agree, fewer than {_LEAST}: nothing was done")
    return result


def _triples(s: Cloud, t: Cloud, pairs: Pairs, option: FastGlobalRegistrationOption, rng: np.random.Generator) -> Pairs:
    """Random triples of `pairs` whose three sides agree, one below the other: (3 K, 2), K at most as asked for."""
    agree = CorrespondenceCheckerBasedOnEdgeLength(option.tuple_scale)
    found, count, left = [pairs[:0]], 0, _TRIALS * len(pairs)
    while left > 0 and count < option.maximum_tuple_count:
        rows = rng.integers(0, len(pairs), (min(_BATCH, left), 3))
        samples = Samples(s, t, pairs[rows])
        distinct = (rows != np.roll(rows, 1, axis=1)).all(axis=1)
        good = samples.pairs[distinct & agree._passes(samples, np.zeros((0, 4, 4)))]
        found.append(good[: option.maximum_tuple_count - count].reshape(-1, 2))
        count, left = count + len(found[-1]) // 3, left - len(samples)
    return np.concatenate(found)


def _optimize(p: Array, q: Array, mu: float, option: FastGlobalRegistrationOption) -> Array:
    """T (4, 4) that takes q (m, 3) to p: Gauss-Newton on the Geman-McClure cost, whose mu falls."""
    pose = np.eye(4)
    for step in range(option.iteration_number):
        moved = q @ pose[:3, :3].T + pose[:3, 3]
        residual = moved - p
        weight = np.square(mu / (np.square(residual).sum(axis=1) + mu))
        total, first = weight.sum(), (weight[:, None] * moved).sum(axis=0)
        second = moved.T @ (weight[:, None] * moved)
        hessian, gradient = np.empty((6, 6)), np.empty(6)
        hessian[:3, :3] = np.trace(second) * np.eye(3) - second
        hessian[:3, 3:] = [[0, -first[2], first[1]], [first[2], 0, -first[0]], [-first[1], first[0], 0]]
        hessian[3:, :3], hessian[3:, 3:] = hessian[:3, 3:].T, total * np.eye(3)
        gradient[:3] = (weight[:, None] * np.cross(moved, residual)).sum(axis=0)
        gradient[3:] = (weight[:, None] * residual).sum(axis=0)
        pose = euler_motion(solve_least(hessian, -gradient)) @ pose
        if option.decrease_mu and step % 4 == 0 and mu > option.maximum_correspondence_distance:
            mu /= option.division_factor
    return pose


def _prepared(source: Any, target: Any, option: Any) -> tuple[Cloud, Cloud, FastGlobalRegistrationOption]:
    if not isinstance(option, FastGlobalRegistrationOption):
        if type(option).__name__ != "FastGlobalRegistrationOption":
            raise TypeError(wrong("option", option, "FastGlobalRegistrationOption"))
        option = FastGlobalRegistrationOption(option)
    for name, least in (("division_factor", 1.0), ("maximum_correspondence_distance", 0.0), ("tuple_scale", 0.0)):
        if not getattr(option, name) > least:
            raise InputError(f"option.{name}", f"{getattr(option, name):g}", f"a number above {least:g}")
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    for name, cloud in (("source", s), ("target", t)):
        check_finite(cloud, name)
    return s, t, option


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
