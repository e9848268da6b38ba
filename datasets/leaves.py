"""Pictures made of formulas, for features whose weights may be shipped: dead leaves, and the same in other colours.

    python datasets/leaves.py --output leaves.npz [--count 400] [--seed 0]

Ellipses, polygons and strips of all sizes fall on each other until they cover the picture (the dead leaves model,
Lee, Mumford and Huang, IJCV 2001; networks learn from such noise: Baradad et al., NeurIPS 2021). Each is of a kind, and
kinds have a colour and a texture of noise. The `partner` is the same fall with kinds recoloured, some alike, little
texture and letters on it: what a map is to a photograph. Nothing of it is anybody's: CC0. One picture in eight
validates. Needs Pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from images import save, split_of
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

Array = NDArray[Any]
HEIGHT, WIDTH = 320, 480
FINER = 2  # drawn at so many times the size, and averaged
KINDS = 12
LEAVES = 900
LICENCE = "CC0, made by datasets/leaves.py"


def outline(rng: np.random.Generator, smallest: float, largest: float) -> list[tuple[float, float]]:
    """A polygon somewhere: an ellipse, a rectangle, a star with rounded or sharp corners, or a bent strip."""
    # areas follow a power law, as in pictures of the world
    radius = (rng.uniform(largest**-1.5, smallest**-1.5)) ** (-1 / 1.5)
    middle = rng.uniform([-0.1 * WIDTH, -0.1 * HEIGHT], [1.1 * WIDTH, 1.1 * HEIGHT]) * FINER
    turn, flat = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1)
    shape = rng.choice(["ellipse", "rectangle", "star", "strip"], p=[0.2, 0.35, 0.3, 0.15])
    if shape == "strip":
        along = np.cumsum(rng.normal(0, 0.35, 12))
        path = np.cumsum(np.stack([np.cos(along), np.sin(along)], 1), 0) * radius / 2
        across = np.stack([-np.sin(along), np.cos(along)], 1) * rng.uniform(1.5, 6) * FINER
        points = np.concatenate([path + across, (path - across)[::-1]]) - path.mean(0)
    elif shape == "rectangle":
        points = radius * np.array([[-1, -flat], [1, -flat], [1, flat], [-1, flat]])
    else:
        count = 32 if shape == "ellipse" else rng.integers(3, 12)
        angle = np.sort(rng.uniform(0, 2 * np.pi, count)) if shape == "star" else np.linspace(0, 2 * np.pi, count)
        reach = rng.uniform(0.4, 1, count) if shape == "star" else np.ones(count)
        points = radius * (reach * np.array([np.cos(angle), flat * np.sin(angle)])).T
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return [(float(x), float(y)) for x, y in points @ rotation.T + middle]


def fall(rng: np.random.Generator) -> tuple[Array, Array]:
    """Which leaf lies on top (H, W), and the kind of each leaf (LEAVES + 1,)."""
    image = Image.new("I", (FINER * WIDTH, FINER * HEIGHT), 0)
    draw = ImageDraw.Draw(image)
    for leaf in range(1, LEAVES + 1):
        draw.polygon(outline(rng, 4 * FINER, 120 * FINER), fill=leaf)
    return np.asarray(image), rng.integers(KINDS, size=LEAVES + 1)


def noise(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """(H, W) of spread 1, its spectrum a random power of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * frequency ** -rng.uniform(0.3, 2)
    field = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(field / field.std())


def painted(top: Array, colours: Array, texture: Array, roughness: Array) -> Array:
    """(HEIGHT, WIDTH, 3) uint8: every leaf in its colour (leaves, 3), with texture (H, W) times its roughness."""
    fine = colours[top] + (roughness[top] * texture)[..., None]
    whole = fine.reshape(HEIGHT, FINER, WIDTH, FINER, 3).mean((1, 3))
    return np.asarray((whole.clip(0, 1) * 255).round().astype(np.uint8))


def pair(rng: np.random.Generator) -> tuple[Array, Array]:
    """A picture and its partner."""
    top, kind = fall(rng)
    first = rng.uniform(0, 1, (KINDS, 3))[kind] + rng.normal(0, 0.1, (LEAVES + 1, 3))
    rough = rng.uniform(0, 0.25, KINDS)[kind]
    picture = painted(top, first, noise(rng, top.shape), rough)
    alike = rng.integers(rng.integers(3, KINDS + 1), size=KINDS)  # kinds that the partner tells apart no more
    second = rng.uniform(0, 1, (KINDS, 3))[alike][kind] + rng.normal(0, 0.02, (LEAVES + 1, 3))
    partner = painted(top, second, noise(rng, top.shape), np.full(LEAVES + 1, rng.uniform(0, 0.05)))
    drawn = Image.fromarray(partner)
    draw = ImageDraw.Draw(drawn)
    for _ in range(rng.integers(0, 15)):  # names and marks that only a map has
        x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        ink = tuple(int(c) for c in rng.integers(256, size=3))
        letters = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVWaeinorst "), rng.integers(3, 14)))
        draw.text((x, y), letters, fill=ink)
    return picture, np.asarray(drawn)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for k in tqdm(range(options.count)):
        picture, partner = pair(np.random.default_rng([options.seed, k]))
        name = f"leaves-{options.seed}-{k}"
        rows.append({"picture": picture, "partner": partner, "name": name, "split": split_of(name)})
    save(options.output, rows, LICENCE)


if __name__ == "__main__":
    main()
