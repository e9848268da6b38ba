"""Furnished rooms seen by a hand-held depth camera: fragments with exact poses, on terms that let weights be shipped.

    apt-get download sweethome3d-furniture          # 120 MB, CC0 and CC-BY-3.0, in a folder; optional
    python datasets/rooms.py --output rooms.npz --packages FOLDER --rooms 60 --seed 0

A room has walls with recessed windows and doors, pillars and pipes, furniture along the walls and in the middle (half
of it made here, half Sweet Home 3D's), and things that lie on it. A camera moves through it on a smooth path. Eight
frames of depth, cast by Open3D, make a fragment: their points, with the noise of structured light, thinned to 2.5 cm,
in the frame of the fragment's first camera, as 3DMatch's are. Pairs overlap by 0.1 to 0.9; T is exact, but the frames
within a fragment have drifted, as tracked ones do. The same seed gives the same bytes. Needs open3d.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _fragments import Cloud, save_fragments
from _furniture import LYING, STANDING, Mesh, Model, box, joined, make, models
from scipy.interpolate import CubicSpline
from scipy.ndimage import zoom
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dlc_reg import ops

Array = np.ndarray
WIDTH, HEIGHT, FOCAL = 160, 120, 131.0  # pixels: a quarter of a Kinect's
STEP = 3.2e-3  # [1/m] of inverse depth: an eighth of a pixel of a Kinect's disparity; 1.3 cm at 2 m
NEAREST, FARTHEST = 0.4, (3.5, 6.0)  # [m] that the camera sees
CLEAR = 0.25  # [m] between the camera and things
FRAMES, FRAGMENTS = 8, 14  # of a fragment, of a room
VOXEL, NEAR = 0.025, 0.05  # [m] of a fragment, of what overlaps
OVERLAPS, PAIRS = (0.1, 0.9), 36  # of a room, evenly over the overlaps


# --- a room ----------------------------------------------------------------------------------------------------------
def wall(length: float, height: float, rng: np.random.Generator) -> Mesh:
    """From (0, 0) along x, seen from +y, with a recess or two; what lies behind them may be open."""
    parts, at = [], 0.0
    while length - at > 1.6 and rng.random() < 0.7:
        left = at + rng.uniform(0.2, length - at - 1.3)
        right = left + rng.uniform(0.6, min(1.8, length - left - 0.1))
        low, high = (0.0, 2.05) if rng.random() < 0.4 else rng.uniform([0.5, 1.6], [1.1, 2.2])
        deep, thick = rng.uniform(0.05, 0.35), 0.04
        wide, tall = right - left, high - low
        parts += [box(left - at, 0.01, height).moved((at + left) / 2, 0)]
        parts += [box(wide, 0.01, low).moved(left + wide / 2, 0)] if low else []
        parts += [box(wide, 0.01, height - high).moved(left + wide / 2, 0, high)]
        parts += [box(0.02, deep, tall).moved(x, -deep / 2, low) for x in (left, right)]
        parts += [box(wide, deep, 0.02).moved(left + wide / 2, -deep / 2, z) for z in (low, high)]
        parts += [box(thick, thick, tall).moved(x, -deep + thick, low) for x in np.linspace(left, right, 3)]
        if rng.random() < 0.6:  # else there is glass, which the camera does not see
            parts += [box(wide, 0.01, tall).moved(left + wide / 2, -deep, low)]
        at = right
    return joined(*parts, box(length - at, 0.01, height).moved((at + length) / 2, 0))


def room(rng: np.random.Generator, library: list[Model]) -> tuple[Any, Array]:
    """A scene to cast rays into, and its size (3,); a corner of the floor is the origin."""
    core = importlib.import_module("open3d").core
    scene = importlib.import_module("open3d").t.geometry.RaycastingScene(nthreads=1)
    x, y, height = rng.uniform([2.4, 2.4, 2.3], [6.5, 6.5, 3.2])

    def add(mesh: Mesh) -> None:
        vertices = core.Tensor(np.ascontiguousarray(mesh.vertices, np.float32))
        scene.add_triangles(vertices, core.Tensor(np.ascontiguousarray(mesh.faces, np.uint32)))

    add(joined(box(x, y, 0.01).moved(x / 2, y / 2, -0.01), box(x, y, 0.01).moved(x / 2, y / 2, height)))
    sides = [(0, 0, 0, x), (x, 0, 1, y), (x, y, 2, x), (0, y, 3, y)]  # each wall's start, quarter turns, length
    for at_x, at_y, quarter, length in sides:
        add(wall(length, height, rng).moved(at_x, at_y, 0, quarter * np.pi / 2))
        for _ in range(rng.integers(0, 3)):  # pillars, pipes, radiators, cupboards and pictures on the wall
            size = rng.uniform([0.05, 0.05, 0.3], [0.9, 0.3, 0.9])
            if rng.random() < 0.3:
                size = np.array([*rng.uniform(0.05, 0.4, 2), height])
            part = box(*size).moved(rng.uniform(0.2, length - 0.2), size[1] / 2, rng.uniform(0, height - size[2]))
            add(part.moved(at_x, at_y, 0, quarter * np.pi / 2))
    standing = [m for m in library if 0.3 < m.size[2] < height and m.size[:2].max() < 2.4]
    lying = [m for m in library if m.size.max() < 0.6]
    taken: list[Array] = []
    for _ in range(int(x * y * rng.uniform(0.7, 1.6)) + 4):
        mesh = make(rng, standing, STANDING)
        quarter = rng.integers(4)
        turn = quarter * np.pi / 2 + (rng.normal(0, 0.3) if rng.random() < 0.3 else 0)
        extent = np.ptp(mesh.moved(0, 0, 0, turn).vertices, axis=0)[:2] / 2
        if (extent * 2 > [x - 0.2, y - 0.2]).any():
            continue
        for _ in range(10):
            place = rng.uniform(extent, [x, y] - extent)
            if rng.random() < 0.75:  # its back to the wall
                gap = extent + rng.uniform(0, 0.05)
                axis, at = [(1, y - gap[1]), (0, gap[0]), (1, gap[1]), (0, x - gap[0])][quarter]
                place[axis] = at
            if all((np.abs(place - o[0]) > extent + o[1]).any() for o in taken):
                taken.append(np.array([place, extent]))
                add(mesh.moved(*place, 0, turn))
                break
    spots = [rng.uniform(0.2, np.array([x, y]) - 0.2, (8, 2))]
    spots = np.concatenate(spots + [place + rng.uniform(-0.9, 0.9, (6, 2)) * extent for place, extent in taken])
    down = np.c_[spots, np.full(len(spots), height - 0.05), np.tile([0, 0, -1.0], (len(spots), 1))]
    floor = height - 0.05 - scene.cast_rays(core.Tensor(down.astype(np.float32)))["t_hit"].numpy()
    for (at_x, at_y), z in zip(spots, floor, strict=True):
        if np.isfinite(z) and z < 1.9 and rng.random() < 0.6:
            add(make(rng, lying, LYING).moved(at_x, at_y, z, rng.uniform(0, 2 * np.pi)))
    return scene, np.array([x, y, height])


# --- its camera ------------------------------------------------------------------------------------------------------
def path(rng: np.random.Generator, scene: Any, size: Array, count: int) -> Array:
    """Poses (count, 4, 4) of a camera, x right, y down, z forward, at equal times; clear of things if it can be."""
    core = importlib.import_module("open3d").core
    knots = max(4, count // 16)
    for _ in range(100):
        s, t = np.arange(knots), np.linspace(0, knots - 1, count)
        low, high = [0.5, 0.5, 0.8], [size[0] - 0.5, size[1] - 0.5, min(1.9, size[2] - 0.3)]
        at = CubicSpline(s, rng.uniform(low, high, (knots, 3)))(t).clip(low, high)
        if scene.compute_distance(core.Tensor(at.astype(np.float32))).numpy().min() > CLEAR:
            break
    turns = CubicSpline(s, rng.choice([-1, 1]) * s * rng.uniform(0.6, 1.2) + rng.normal(0, 0.5, knots))(t)
    pitch, roll = (CubicSpline(s, rng.normal(mean, spread, knots))(t) for mean, spread in ((0.35, 0.2), (0, 0.1)))
    turned = Rotation.from_euler("ZXZ", np.stack([turns, -np.pi / 2 - pitch, roll], 1))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turned.as_matrix(), at
    return poses


def depth_image(rng: np.random.Generator, scene: Any, pose: Array, bias: Array, farthest: float) -> Array:
    """Points (N, 3) in the camera's frame of what a structured-light camera at `pose` sees."""
    core = importlib.import_module("open3d").core
    u, v = np.meshgrid(np.arange(WIDTH) - WIDTH / 2 + rng.random(), np.arange(HEIGHT) - HEIGHT / 2 + rng.random())
    rays = np.stack([u / FOCAL, v / FOCAL, np.ones_like(u)], -1)
    world = rays @ pose[:3, :3].T
    cast = scene.cast_rays(
        core.Tensor(np.concatenate([np.broadcast_to(pose[:3, 3], world.shape), world], -1).astype(np.float32))
    )
    depth, normals = cast["t_hit"].numpy(), cast["primitive_normals"].numpy()
    cosine = np.abs((normals * world).sum(-1)) / np.linalg.norm(world, axis=-1)
    inverse = 1 / np.maximum(depth, 0.05)
    jumps = [np.abs(np.diff(inverse, axis=axis, append=0)) for axis in (0, 1)]  # the image's end is one
    edge = np.maximum(*jumps) > 0.1 * inverse
    # flat patches of disparity share an error, and what is written is a whole number of steps
    error = zoom(rng.normal(0, 0.35, (HEIGHT // 4, WIDTH // 4)), 4, order=1) + rng.normal(0, 0.35, depth.shape)
    inverse = np.round(inverse / STEP + bias + error) * STEP
    seen = np.isfinite(depth) & (depth > NEAREST) & (depth < farthest) & (inverse > 0)
    seen &= (cosine > rng.uniform(0.08, 0.25, depth.shape)) & ~(edge & (rng.random(depth.shape) < 0.8))
    return rays[seen] / inverse[seen][:, None]


def fragments(rng: np.random.Generator, scene: Any, size: Array) -> Iterator[tuple[Array, Array]]:
    """Points (N, 3) in the frame of each fragment's first camera, and that camera's pose (4, 4)."""
    poses = path(rng, scene, size, FRAGMENTS * FRAMES)
    bias = zoom(rng.normal(0, 0.7, (4, 5)), (HEIGHT / 4, WIDTH / 5), order=1)
    farthest = rng.uniform(*FARTHEST)
    for first in range(0, len(poses), FRAMES):
        points, drift = [], np.eye(4)
        for pose in poses[first : first + FRAMES]:
            seen = depth_image(rng, scene, pose, bias, farthest)
            to_first = np.linalg.inv(poses[first]) @ pose @ drift
            points.append(seen @ to_first[:3, :3].T + to_first[:3, 3])
            step = np.eye(4)
            step[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.0015, 3)).as_matrix()
            step[:3, 3] = rng.normal(0, 0.0015, 3)
            drift = drift @ step
        fused = np.concatenate(points)
        if len(fused) < 5000:
            continue
        means, voxel = ops.voxel_groups(fused, VOXEL)
        kept = means[np.bincount(voxel) > 1]  # a single point in its voxel is what a fused volume would not hold
        yield kept, poses[first]


def overlapping(rng: np.random.Generator, clouds: list[Array], poses: list[Array]) -> Iterator[tuple[int, int, float]]:
    """At most `PAIRS` pairs i < j with their overlap, as many of each tenth of it where there are so many."""
    world = [p @ pose[:3, :3].T + pose[:3, 3] for p, pose in zip(clouds, poses, strict=True)]
    trees = [cKDTree(p) for p in world]
    bins: dict[int, list[tuple[int, int, float]]] = {}
    for i in range(len(world)):
        for j in range(i + 1, len(world)):
            shares = [
                np.isfinite(trees[a].query(world[b][::7], distance_upper_bound=NEAR)[0]).mean()
                for a, b in ((i, j), (j, i))
            ]
            overlap = float(np.mean(shares))
            if OVERLAPS[0] < overlap < OVERLAPS[1]:
                bins.setdefault(int(10 * overlap), []).append((i, j, overlap))
    queues = [[found[k] for k in rng.permutation(len(found))] for _, found in sorted(bins.items())]
    left = PAIRS
    while left and any(queues):
        for queue in filter(None, queues):
            if left:
                left -= 1
                yield queue.pop()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="a folder with the .deb; without, furniture is made here alone")
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    library = models(options.packages) if options.packages else []
    clouds, pairs, truth, overlaps = [], [], [], []
    for number in tqdm(range(options.rooms), unit="room"):
        rng = np.random.default_rng([options.seed, number])
        made = list(fragments(rng, *room(rng, library)))
        for i, j, overlap in overlapping(rng, [points for points, _ in made], [pose for _, pose in made]):
            pairs.append((len(clouds) + i, len(clouds) + j))
            truth.append(np.linalg.inv(made[i][1]) @ made[j][1])
            overlaps.append(overlap)
        clouds += [Cloud(f"room-{number:04d}", k, points) for k, (points, _) in enumerate(made)]
    arrays = {
        "rooms_pairs": np.array(pairs).reshape(-1, 2),
        "rooms_T": np.array(truth).reshape(-1, 4, 4),
        "rooms_overlap": np.array(overlaps),
        "licences": np.array(sorted({model.row.licence for model in library})),
    }
    save_fragments(options.output, clouds, scale=1e-4, compress=True, arrays=arrays)
    print(f"{options.output}: {len(clouds)} fragments of {options.rooms} rooms, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
