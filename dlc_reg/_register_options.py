"""What `register` is told beside the clouds, and its checks."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike

from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.constraint import DOF, check_gravity
from dlc_reg.registration.frame import Objective
from dlc_reg.registration.objectives import OBJECTIVES

SEARCHES = ("auto", "global", "learned")
METHODS = (*SEARCHES, *OBJECTIVES)


@dataclass(frozen=True)
class Options:
    """What `register` is told beside the clouds. Raises InputError for what it cannot be told."""

    method: str = "auto"
    voxel_size: float | None = None
    max_correspondence_distance: float | None = None
    with_scaling: bool = False
    remove_non_finite: bool = False
    num_threads: int | None = None
    device: str | torch.device | None = None
    seed: int = 0
    dof: str = "rigid"
    target_gravity: ArrayLike | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        methods = (*SEARCHES, *OBJECTIVES)  # not METHODS: users may have added their own
        if self.method not in methods:
            raise InputError("method", repr(self.method), "one of " + ", ".join(map(repr, methods)))
        if self.with_scaling and self.method not in ("auto", "global", "point_to_point"):
            raise InputError("method", f"{self.method!r} with with_scaling", "'auto', 'global' or 'point_to_point'")
        length = "a positive finite length in the points' unit, or None"
        seconds = "a positive finite number of seconds, or None"
        expected = {"voxel_size": length, "max_correspondence_distance": length, "budget": seconds}
        for name, kind in expected.items():
            value = getattr(self, name)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise InputError(name, repr(value), kind)
        threads, seed = self.num_threads, self.seed
        counted = isinstance(threads, numbers.Integral) and not isinstance(threads, bool) and threads >= 1
        if threads is not None and not counted:
            raise InputError("num_threads", repr(threads), "a positive integer, or None for all cores")
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
            raise InputError("seed", repr(seed), "an integer, 0 or above")
        if self.dof not in DOF:
            raise InputError("dof", repr(self.dof), "one of " + ", ".join(map(repr, DOF)))
        if self.target_gravity is not None:
            object.__setattr__(self, "target_gravity", check_gravity(self.target_gravity, "target_gravity"))
        if self.device is not None and str(self.device) != "cpu":
            raise InputError("device", repr(self.device), "'cpu' or None: only dlc_reg.ops has CUDA kernels")

    @property
    def searches(self) -> bool:
        """Whether poses are sought; otherwise the start is refined."""
        return self.method in SEARCHES

    @property
    def objective(self) -> Objective:
        """What refines: the method's own, or that for the pose that a search found."""
        return OBJECTIVES["point_to_plane" if self.searches else self.method]

    def read(self, cloud: Any, name: str, viewpoint: ArrayLike | None) -> PointCloud:
        read = PointCloud.from_any(
            cloud, name=name, viewpoint=viewpoint, remove_non_finite=self.remove_non_finite, seed=self.seed
        )
        if "colors" in self.objective.needs_of(name):
            self.objective.require("colors", name, read)
        return read
