"""Which motions a pair of surfaces leaves free: a plane slides, a cylinder spins, a sphere turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A motion is free where the objective curves this much less than in its stiffest direction. Estimated normals lift that
# of a clean cylinder of 1,000 points to 0.001 and of a noisy can to 0.003; indoor scans have 0.013 and more.
RELATIVE_CURVATURE = 4e-3


@dataclass(frozen=True)
class FreeMotion:
    """A motion that leaves the objective flat: `twist` (6,) = (rotation xyz, translation xyz) about `centre` (3,).

    It is scaled so that it moves the points by one characteristic radius; `text` says it in words.
    """

    twist: Array
    centre: Array
    text: str

    def about(self, origin: Array) -> Array:
        """The same motion as a twist (6,) about another origin."""
        return np.concatenate([self.twist[:3], self.twist[3:] + np.cross(self.twist[:3], origin - self.centre)])


def surface_curvature(points: Array, normals: Array) -> tuple[Array, Array, float]:
    """Hessian (6, 6) of the mean squared point-to-plane distance, without units, with its centre (3,) and radius.

    `points`, `normals`: (m, 3). The rotation is about the points' mean and measured in root mean square radii (so that
    the unit of length and the place of the origin don't matter): J = [(p - centre) x n / radius, n].
    """
    centre = points.mean(axis=0)
    arms = points - centre
    radius = max(float(np.sqrt((arms**2).sum(axis=1).mean())), 1e-300)
    jacobian = np.concatenate([np.cross(arms / radius, normals), normals], axis=1)
    return jacobian.T @ jacobian / len(points), centre, radius


def free_motions(points: Array, normals: Array, basis: Array | None = None) -> list[FreeMotion]:
    """The motions that slide matched surfaces along themselves; empty where all six degrees of freedom are held.

    `points` (m, 3): matched target points; `normals` (m, 3): theirs. Compare Gelfand et al., 3DIM 2003. `basis` (6, k):
    of the motions that are permitted (`Constraint.basis`); None: of all.
    """
    if not len(points):
        return []
    hessian, centre, radius = surface_curvature(points, normals)
    return describe_null_space(hessian, centre, radius, basis)


def weakest_motion(points: Array, normals: Array, basis: Array | None = None) -> tuple[float, str]:
    """How firmly the least held motion is held, relative to the stiffest, in [0, 1], and which it is, in words.

    Arguments as of `free_motions`. Fewer than six points hold nothing: (0, "").
    """
    if len(points) < 6:
        return 0.0, ""
    hessian, centre, radius = surface_curvature(points, normals)
    values, vectors = np.linalg.eigh(hessian if basis is None else basis.T @ hessian @ basis)
    twist = vectors[:, 0] if basis is None else basis @ vectors[:, 0]
    turns = bool(np.linalg.norm(twist[:3]) >= 0.1)
    text = _turn(twist, centre, radius) if turns else f"slides along {_direction(twist[3:])}"
    return float(max(values[0], 0.0) / values[-1]), text


def describe_null_space(hessian: Array, centre: Array, radius: float, basis: Array | None = None) -> list[FreeMotion]:
    """`free_motions` from a Hessian (6, 6) about `centre` whose rotations are measured in units of `radius`."""
    values, vectors = np.linalg.eigh(hessian if basis is None else basis.T @ hessian @ basis)
    vectors = vectors if basis is None else basis @ vectors
    null = vectors[:, values < RELATIVE_CURVATURE * values[-1]]
    if not null.size:
        return []
    # eigenvectors of a repeated eigenvalue are mixed at random: turn them so that pure translations come first
    _, turning, basis = np.linalg.svd(null[:3])
    turning = np.concatenate([turning, np.zeros(null.shape[1] - len(turning))])
    slides, turns = null @ basis[turning < 0.1].T, null @ basis[turning >= 0.1].T
    turns = turns - slides @ (slides.T @ turns)
    motions = [FreeMotion(_scaled(v, radius), centre, f"slides along {_direction(v[3:])}") for v in slides.T]
    if turns.shape[1] == 3:
        motions += [
            FreeMotion(_scaled(v, radius), centre, f"turns about any axis through {_point(_axis(v, radius) + centre)}")
            for v in turns.T
        ]
    else:
        motions += [FreeMotion(_scaled(v, radius), centre, _turn(v, centre, radius)) for v in turns.T]
    return motions


def _turn(twist: Array, centre: Array, radius: float) -> str:
    rotation = twist[:3]
    pitch = float(rotation @ twist[3:] / (rotation @ rotation))  # in radii a radian
    verb = "spins about" if abs(pitch) < 0.1 else "screws along"
    return f"{verb} the axis {_direction(rotation)} through {_point(_axis(twist, radius) + centre)}"


def _axis(twist: Array, radius: float) -> Array:
    """The point of the screw axis nearest to the centre, relative to the centre."""
    rotation = twist[:3]
    point: Array = np.cross(rotation, twist[3:]) / (rotation @ rotation) * radius
    return point


def _scaled(twist: Array, radius: float) -> Array:
    return np.concatenate([twist[:3], twist[3:] * radius])


def _direction(vector: Array) -> str:
    unit = vector / np.linalg.norm(vector)
    unit = unit * np.sign(unit[np.argmax(np.abs(unit))])  # an axis has no sign: print the one whose largest part is > 0
    return "(" + ", ".join(f"{x + 0.0:.2f}" for x in np.round(unit, 2)) + ")"


def _point(point: Array) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in point) + ")"
