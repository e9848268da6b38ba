"""Things that a room holds, as triangles: made here, or Sweet Home 3D's furniture at the size its catalogue says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cad import Row, furniture, read_obj
from scipy.interpolate import CubicSpline

Array = np.ndarray
LARGEST = 2 << 20  # bytes of a model
UNFIT = ("Exterior", "Vehicles", "Doors and windows", "Staircases")


class Mesh(NamedTuple):
    """Vertices (V, 3), metres, z up, standing on z = 0 about the origin with its back to +y; triangles (F, 3)."""

    vertices: Array
    faces: Array

    @property
    def size(self) -> Array:
        return np.ptp(self.vertices, axis=0)

    def moved(self, x: float, y: float, z: float = 0.0, turn: float = 0.0) -> Mesh:
        c, s = np.cos(turn), np.sin(turn)
        return Mesh(self.vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + [x, y, z], self.faces)


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + start for m, start in zip(meshes, starts[:-1], strict=True)]
    return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces))


# --- what is made here -----------------------------------------------------------------------------------------------
def box(x: float, y: float, z: float) -> Mesh:
    corners = (np.indices((2, 2, 2)).reshape(3, -1).T - [0.5, 0.5, 0]) * [x, y, z]
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    return Mesh(corners, quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3))


def sheet(grid: Array) -> Mesh:
    """A surface through points (A, B, 3)."""
    a, b = grid.shape[:2]
    i = np.arange(a * b).reshape(a, b)
    quads = np.stack([i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]], -1).reshape(-1, 4)
    return Mesh(grid.reshape(-1, 3), quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3))


def table(rng: np.random.Generator) -> Mesh:
    x, y, z = rng.uniform([0.6, 0.5, 0.4], [1.8, 0.9, 0.9])
    leg = box(0.05, 0.05, z)
    legs = [leg.moved(i * (x / 2 - 0.05), j * (y / 2 - 0.05)) for i in (-1, 1) for j in (-1, 1)]
    return joined(box(x, y, 0.04).moved(0, 0, z), *legs)


def shelf(rng: np.random.Generator) -> Mesh:
    x, y, z = rng.uniform([0.5, 0.25, 0.8], [1.4, 0.45, 2.1])
    boards = rng.integers(2, 6)
    parts = [box(0.03, y, z).moved(side * x / 2, 0) for side in (-1, 1)] + [box(x, 0.02, z).moved(0, y / 2)]
    for k in range(boards + 1):
        parts.append(box(x, y, 0.025).moved(0, 0, k * z / boards))
        at = -x / 2 + 0.02
        while k < boards and at < x / 2 - 0.08:
            thick, deep, high = rng.uniform([0.015, 0.4, 0.3], [0.06, 0.8, 0.9]) * [1, y, z / boards]
            if rng.random() < 0.75:
                parts.append(box(thick, deep, high).moved(at + thick / 2, (y - deep) / 2, k * z / boards))
            at += thick + (rng.random() < 0.15) * rng.uniform(0, 0.3)
    return joined(*parts)


def cabinet(rng: np.random.Generator) -> Mesh:
    x, y, z = rng.uniform([0.4, 0.35, 0.4], [1.6, 0.7, 2.0])
    doors = [box(x / 2 - 0.02, 0.02, z - 0.08).moved(side * x / 4, -y / 2 - 0.01, 0.06) for side in (-1, 1)]
    return joined(box(x, y, z), *doors)


def turned(rng: np.random.Generator) -> Mesh:
    """A bottle, bin, vase or lamp: a profile about its axis."""
    radius, height = rng.uniform([0.03, 0.1], [0.2, 0.6])
    z = np.linspace(0, height, 12)
    profile = radius * CubicSpline(np.linspace(0, height, 5), rng.uniform(0.35, 1, 5))(z).clip(0.1)
    angle = np.linspace(0, 2 * np.pi, 21)
    return sheet(
        np.stack(np.broadcast_arrays(*(profile[:, None] * f(angle) for f in (np.cos, np.sin)), z[:, None]), -1)
    )


def heap(rng: np.random.Generator) -> Mesh:
    """A cushion, bag or plant: a lumpy ellipsoid."""
    u, v = np.meshgrid(np.linspace(0, np.pi, 16), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    out = np.stack([np.sin(u) * np.cos(v), np.sin(u) * np.sin(v), np.cos(u)], -1)
    lumps = (np.sin(out @ rng.normal(0, 4, (3, 4)) + np.arange(4)) * rng.uniform(0, 0.2, 4)).sum(-1)
    grid = out * (1 + lumps)[..., None] * rng.uniform([0.1, 0.1, 0.05], [0.4, 0.35, 0.25])
    return sheet(grid - [0, 0, grid[..., 2].min()])


def curtain(rng: np.random.Generator) -> Mesh:
    x, z = rng.uniform([0.5, 1.2], [1.6, 2.3])
    across, high = np.linspace(-x / 2, x / 2, 60), np.linspace(0, z, 12)
    folds = rng.uniform(0.02, 0.06) * np.sin(across * rng.uniform(30, 60) + rng.normal(0, 0.3, 60).cumsum() * 0.5)
    return sheet(np.stack(np.broadcast_arrays(across[:, None], folds[:, None], high), -1))


Maker = Callable[[np.random.Generator], Mesh]
STANDING: list[Maker] = [table, shelf, cabinet, cabinet, curtain, heap]
LYING: list[Maker] = [turned, heap, lambda rng: box(*rng.uniform(0.04, 0.4, 3))]


@dataclass(frozen=True)
class Model:
    """A piece of Sweet Home 3D's furniture, read when it is first wanted."""

    row: Row

    @property
    def size(self) -> Array:
        """(3,), metres, as the catalogue says."""
        return np.array([float(self.row.about[k]) for k in ("width", "depth", "height")]) / 100

    @cached_property
    def mesh(self) -> Mesh:
        surface = read_obj(self.row.data)
        turn = np.array(self.row.about.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float).reshape(3, 3)
        x, y, z = turn @ surface.vertices.T
        vertices = np.stack([x, -z, y], 1)
        low, high = vertices.min(0), vertices.max(0)
        middle = [*(low + high)[:2] / 2, low[2]]
        return Mesh((vertices - middle) / np.maximum(high - low, 1e-6) * self.size, surface.triangles)


def models(packages: Path) -> list[Model]:
    found = sorted(packages.glob("sweethome3d-furniture_*.deb"))
    if not found:
        raise SystemExit(f"{packages}: no sweethome3d-furniture_*.deb")
    rows = (r for r in furniture(found[-1]) if r.category not in UNFIT and len(r.data) <= LARGEST)
    return [Model(row) for row in rows if row.about.get("doorOrWindow") != "true"]


def make(rng: np.random.Generator, library: list[Model], makers: list[Maker]) -> Mesh:
    """One of the library, if there is any, or as often one that is made here."""
    if library and rng.random() < 0.6:
        model = library[rng.integers(len(library))]
        try:
            if len(model.mesh.faces):
                return model.mesh
        except (ValueError, IndexError, KeyError):
            pass  # not a mesh that trimesh reads
    return makers[rng.integers(len(makers))](rng)
