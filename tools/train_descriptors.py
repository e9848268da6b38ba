"""Trains the learned descriptors on rooms (`datasets/rooms.py`), with known viewpoints and without.

    python tools/train_descriptors.py rooms.npz --output FOLDER [--steps 2000] [--seed 0]

InfoNCE between descriptors of points that the true pose lays within a voxel, against others of the pair that lie
further than 3 voxels apart. The last tenth of the rooms is held out, and what is printed is counted there. FOLDER gets
oriented.safetensors and unoriented.safetensors.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fragments import Fragments
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dlc_reg.io import read_columns
from dlc_reg.networks.descriptors import Descriptors, file_name, histograms
from dlc_reg.networks.files import save_network
from dlc_reg.registration.description import nearest
from dlc_reg.registration.global_search import Thinned, working_voxel_size

TEMPERATURE = 0.07
ANCHORS, OTHERS = 512, 1024  # correspondences of a step, and points besides
HELD_OUT = 0.1  # of the rooms


@dataclass(frozen=True)
class Described:
    points: np.ndarray  # (N, 3)
    codes: Tensor  # (N, D) uint8: the network's input times 255
    voxel: float

    def input(self, rows: Tensor | slice = slice(None)) -> Tensor:
        return self.codes[rows].float() / 255


@dataclass(frozen=True)
class Pair:
    source: Described
    target: Described
    T_target_source: np.ndarray
    room: str

    @cached_property
    def correspondences(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the source and of the target that lie within a voxel at the truth."""
        moved = self.source.points @ self.T_target_source[:3, :3].T + self.T_target_source[:3, 3]
        distance, nearest = cKDTree(self.target.points).query(moved, distance_upper_bound=self.source.voxel)
        rows = np.flatnonzero(np.isfinite(distance))
        return rows, nearest[rows]


def describe(fragments: Fragments, rng: np.random.Generator, *, oriented: bool) -> list[Described]:
    """Every fragment, at one voxel size a room, as pairs of it have."""
    clouds = [fragments.cloud(i, viewpoint=True) for i in range(len(fragments.data["scene"]))]
    own = np.array([working_voxel_size(cloud) for cloud in clouds])
    described = []
    factors = {room: rng.uniform(0.9, 1.3) for room in dict.fromkeys(fragments.data["scene"])}
    for i, cloud in enumerate(tqdm(clouds, desc="describing", unit="fragment")):
        room = fragments.data["scene"][i]
        voxel = float(np.median(own[fragments.data["scene"] == room]) * factors[room])
        thinned = Thinned.prepare(cloud, voxel, oriented=oriented)
        codes = (255 * histograms(thinned.description.fpfh, thinned.description.signatures)).round().to(torch.uint8)
        described.append(Described(thinned.coarse.points.double().numpy() + cloud.origin, codes, voxel))
    return described


def pairs_of(fragments: Fragments, seed: int, *, oriented: bool) -> list[Pair]:
    described = describe(fragments, np.random.default_rng(seed), oriented=oriented)
    rows = zip(fragments.data["rooms_pairs"], fragments.data["rooms_T"], strict=True)
    return [Pair(described[j], described[i], pose, str(fragments.data["scene"][i])) for (i, j), pose in rows]


def loss_of(network: Descriptors, pair: Pair, rng: np.random.Generator) -> Tensor | None:
    rows, partners = pair.correspondences
    if len(rows) < 32:
        return None
    chosen = rng.permutation(len(rows))[:ANCHORS]
    losses = []
    ways = (
        (pair.source, rows[chosen], pair.target, partners[chosen]),
        (pair.target, partners[chosen], pair.source, rows[chosen]),
    )
    described = {id(a): network(a.input(torch.from_numpy(at))) for a, at, _, _ in ways}
    for a, _, b, at_b in ways:
        others = rng.integers(len(b.points), size=OTHERS)
        points = torch.from_numpy(b.points[np.concatenate([at_b, others])])
        candidates = torch.cat([described[id(b)], network(b.input(torch.from_numpy(others)))])
        near = torch.cdist(points[: len(at_b)], points) < 3 * b.voxel
        near.fill_diagonal_(False)
        logits = (described[id(a)] @ candidates.T / TEMPERATURE).masked_fill(near, -torch.inf)
        losses.append(cross_entropy(logits, torch.arange(len(at_b))))
    return torch.stack(losses).mean()


def train(pairs: list[Pair], width: int, steps: int, seed: int) -> Descriptors:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Descriptors(pairs[0].source.codes.shape[1], width)
    some = [pairs[k].source for k in rng.integers(len(pairs), size=50)]
    network.mean.copy_(torch.cat([d.input(slice(None, None, 10)) for d in some]).mean(0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    smooth = None
    bar = tqdm(range(steps), desc="training", unit="step")
    for _ in bar:
        loss = loss_of(network, pairs[rng.integers(len(pairs))], rng)
        if loss is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        schedule.step()
    return network.eval()


@torch.no_grad()
def true_matches(network: Descriptors | None, pair: Pair) -> tuple[int, int]:
    """Of the mutual nearest: those that the truth lays within two voxels, and all. Without a network, of FPFH."""
    a, b = (d.input() if network is not None else d.input()[:, :33] ** 2 for d in (pair.source, pair.target))
    found = nearest(*(x.contiguous() if network is None else network(x) for x in (a, b))).numpy()
    moved = pair.source.points[found[:, 0]] @ pair.T_target_source[:3, :3].T + pair.T_target_source[:3, 3]
    distances = np.linalg.norm(moved - pair.target.points[found[:, 1]], axis=1)
    return int((distances < 2 * pair.source.voxel).sum()), len(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fragments = Fragments(options.data)
    licences = read_columns(options.data, ("licences",), "datasets/rooms.py")["licences"].tolist()
    rooms = list(dict.fromkeys(fragments.data["scene"]))
    held = set(rooms[-max(1, round(HELD_OUT * len(rooms))) :])
    for oriented in (True, False):
        begun = time.perf_counter()
        pairs = pairs_of(fragments, options.seed, oriented=oriented)
        network = train([p for p in pairs if p.room not in held], options.width, options.steps, options.seed)
        figures = {}
        for name, judged in (("fpfh", None), ("learned", network)):
            counts = np.array([true_matches(judged, p) for p in pairs if p.room in held])
            figures[name] = {
                "true_matches": float(counts[:, 0].mean()),
                "inlier_ratio": float((counts[:, 0] / counts[:, 1]).mean()),
            }
        seconds = time.perf_counter() - begun
        name = file_name(oriented=oriented)
        card = {
            "data": f"datasets/rooms.py, {len(rooms)} rooms, SHA-256 {fragments.checksum()}", "licences": licences,
            "rooms": len(rooms), "held_out": len(held), "seed": options.seed, "steps": options.steps,
            "figures": figures,
        }  # fmt: skip
        save_network(options.output / name, network, card, {"descriptors": Descriptors})
        print(f"{name}: {seconds:.0f} s; on {len(held)} rooms held out: {figures}")


if __name__ == "__main__":
    main()
