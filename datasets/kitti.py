"""Pairs of lidar scans of KITTI's odometry benchmark: fetch, check, and prepare the file that `tools/` evaluate on.

    python datasets/kitti.py --output kitti.npz                                            # fetches 80 GB
    python datasets/kitti.py --output kitti.npz --archive data_odometry_velodyne.zip \\
        --archive data_odometry_poses.zip --archive data_odometry_calib.zip                # or folders, unpacked
    python datasets/kitti.py --output own.npz --poses T_scan0_scan.json --archive FOLDER_OF_BIN --distance 1

Sequences 08, 09 and 10 are the field's test set. Pairs are chosen by its rule (3DFeat-Net, Yew and Lee, ECCV 2018, and
FCGF, Choy et al., ICCV 2019): from a scan to the last one before the trajectory is --distance metres away, then on from
the next scan; pair 8, 15, 58, whose truth is known to be wrong, is left out. That makes 555 pairs.

Truth: poses/SEQUENCE.txt (the left camera's, from GPS and inertial sensors) brought to the lidar by Tr of
sequences/SEQUENCE/calib.txt. The papers refine each pair's by ICP, which this does not: at 5 degrees and 2 m it makes
no difference to speak of, for smaller thresholds it would. With --poses, a JSON file of {scan's file name: T_world_scan
4x4}, say of a SLAM, any folder of .bin becomes pairs of one scene. Terms: CC BY-NC-SA 3.0. No SHA-256 of the archives
is on record: the computed ones are printed, and the pairs are counted.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _fetch import Tree, check, fetch
from _fragments import Cloud, check_rigid, save_fragments
from tqdm import tqdm

URLS = tuple(
    f"https://s3.eu-central-1.amazonaws.com/avg-kitti/data_odometry_{part}.zip"
    for part in ("velodyne", "poses", "calib")
)
SEQUENCES = ("08", "09", "10")
COUNT, WRONG = 555, ("08", 15, 58)
DISTANCE, AHEAD = 10.0, 100  # metres, scans
SCALE = 1e-3  # metres, as the scans are recorded
LIMIT = 1 << 28
SCAN = re.compile(r"(?:^|/)(\d+)\.bin$")
SEQUENCE_SCAN = re.compile(r"(?:^|/)sequences/(\d\d)/velodyne/(\d+)\.bin$")


def far_pairs(positions: np.ndarray, there: set[int], distance: float) -> list[tuple[int, int]]:
    """Pairs of scans (i, j) of a trajectory (N, 3): j is the last before one of the next scans is farther from i."""
    pairs, now = [], min(there, default=0)
    while now < len(positions):
        ahead = np.linalg.norm(positions[now : now + AHEAD] - positions[now], axis=1) > distance
        if ahead.any() and now in there:
            last = now + int(ahead.argmax()) - 1
            if last in there and last > now:
                pairs.append((now, last))
            now = last
        now += 1
    return pairs


def read_poses(text: str, name: str) -> np.ndarray:
    """(N, 4, 4) from the 3x4 matrices of poses/SEQUENCE.txt, one a line."""
    try:
        rows = np.array(text.split(), float).reshape(-1, 3, 4)
    except ValueError:
        raise SystemExit(f"{name}: not lines of 12 numbers") from None
    poses = np.concatenate([rows, np.broadcast_to([[[0.0, 0, 0, 1]]], (len(rows), 1, 4))], axis=1)
    for number, pose in enumerate(poses):
        check_rigid(pose, f"{name}: line {number + 1}")
    return poses


def read_calibration(text: str, name: str) -> np.ndarray:
    """T_camera_lidar (4, 4): the line Tr of calib.txt."""
    lines = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("Tr:")]
    if len(lines) != 1 or len(lines[0].split()) != 12:
        raise SystemExit(f"{name}: has no line `Tr:` with 12 numbers")
    return read_poses(lines[0], name)[0]


def read_scan(data: bytes, name: str) -> np.ndarray:
    """(N, 3) float32, metres, in the lidar's frame."""
    if not data or len(data) % 16:
        raise SystemExit(f"{name}: {len(data)} bytes, expected float32 x y z intensity of each point")
    return np.frombuffer(data, "<f4").reshape(-1, 4)[:, :3]


class Scans:
    """By scene: T_world_lidar (N, 4, 4), the trajectory (N, 3) that pairs are chosen by, and where each scan is."""

    def __init__(self) -> None:
        self.poses: dict[str, np.ndarray] = {}
        self.trajectories: dict[str, np.ndarray] = {}
        self.files: dict[str, dict[int, tuple[Tree, str]]] = {}

    @classmethod
    def of_sequences(cls, trees: list[Tree], sequences: list[str]) -> Scans:
        scans = cls()
        for tree in trees:
            for match in filter(None, map(SEQUENCE_SCAN.search, tree.names)):
                if match[1] in sequences:
                    scans.files.setdefault(match[1], {})[int(match[2])] = tree, match.string
        for sequence in sequences:
            if sequence not in scans.files:
                raise SystemExit(f"no sequences/{sequence}/velodyne/NNNNNN.bin in {_places(trees)}")
            camera = read_poses(_text(trees, f"poses/{sequence}.txt"), f"poses/{sequence}.txt")
            name = f"sequences/{sequence}/calib.txt"
            lidar = read_calibration(_text(trees, name), name)
            scans.poses[sequence] = np.linalg.inv(lidar) @ camera @ lidar
            scans.trajectories[sequence] = camera[:, :3, 3]  # the field's code measures the camera's way
        return scans

    @classmethod
    def of_file(cls, trees: list[Tree], poses: Path) -> Scans:
        """One scene, whose scans are those that the JSON file `poses` names, by their numbers."""
        scans, scene = cls(), poses.resolve().parent.name or "scans"
        try:
            table = {str(name): np.array(pose, float) for name, pose in json.loads(poses.read_text("utf-8")).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SystemExit(f"{poses}: not a JSON file of {{name: 4x4 matrix}} ({error})") from None
        known = {}
        for name, pose in table.items():
            match = SCAN.search(name)
            if match is None or pose.shape != (4, 4):
                raise SystemExit(f"{poses}: {name!r} is not NUMBER.bin with a 4x4 matrix")
            check_rigid(pose, f"{poses}: the matrix of {name!r}")
            known[int(match[1])] = pose
        scans.files[scene] = {
            int(match[1]): (tree, match.string)
            for tree in trees
            for match in filter(None, map(SCAN.search, tree.names))
            if int(match[1]) in known
        }
        missing = np.full((4, 4), np.nan)
        scans.poses[scene] = np.stack([known.get(n, missing) for n in range(max(known, default=-1) + 1)] or [missing])
        scans.trajectories[scene] = scans.poses[scene][:, :3, 3]
        return scans

    def pairs(self, distance: float) -> list[tuple[str, int, int]]:
        found = []
        for scene, trajectory in self.trajectories.items():
            found += [(scene, i, j) for i, j in far_pairs(trajectory, set(self.files[scene]), distance)]
        return [pair for pair in found if pair != WRONG]

    def clouds(self, chosen: list[tuple[str, int]]) -> Iterator[Cloud]:
        for scene, number in tqdm(chosen, unit="scan"):
            tree, name = self.files[scene][number]
            yield Cloud(scene, number, read_scan(tree.read(name, LIMIT), name))


def _text(trees: list[Tree], end: str) -> str:
    for tree in trees:
        if any(name == end or name.endswith("/" + end) for name in tree.names):
            return tree.read(tree.find(end)).decode()
    raise SystemExit(f"no {end} in {_places(trees)}")


def _places(trees: list[Tree]) -> str:
    return ", ".join(str(tree.path) for tree in trees)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sequence", action="append", help="several times; default: 08, 09 and 10")
    parser.add_argument("--poses", type=Path, help="a JSON file of poses, in place of the benchmark's")
    parser.add_argument("--distance", type=float, default=DISTANCE, help="metres between the scans of a pair")
    parser.add_argument("--incomplete", action="store_true", help="write whatever scans are there")
    parser.add_argument("--archive", action="append", type=Path, help="an archive or folder; several times")
    parser.add_argument("--download", type=Path, default=Path.home() / ".cache" / "dlc_reg", help="where to keep them")
    options = parser.parse_args(arguments)
    paths = options.archive or [fetch(url, options.download / url.rsplit("/", 1)[-1]) for url in URLS]
    for path in paths:
        if not path.exists():
            raise SystemExit(f"{path}: no such file or folder")
        if options.archive and path.is_file():
            check(path, None)
    trees = [Tree(path) for path in paths]
    whole = options.poses is None and not options.sequence and options.distance == DISTANCE
    if options.poses is None:
        scans = Scans.of_sequences(trees, options.sequence or list(SEQUENCES))
    else:
        scans = Scans.of_file(trees, options.poses)
    pairs = scans.pairs(options.distance)
    if not pairs:
        raise SystemExit(f"no two scans that are there lie {options.distance:g} m apart")
    if whole and len(pairs) != COUNT and not options.incomplete:
        message = f"found {len(pairs)} pairs, expected {COUNT}: not the benchmark's test set"
        raise SystemExit(f"{message} (--incomplete to go on)")
    chosen = sorted({(scene, number) for scene, i, j in pairs for number in (i, j)})
    index = {name: k for k, name in enumerate(chosen)}
    truths = [np.linalg.inv(scans.poses[scene][i]) @ scans.poses[scene][j] for scene, i, j in pairs]
    arrays = {
        "kitti_pairs": np.array([(index[scene, i], index[scene, j]) for scene, i, j in pairs], np.int32),
        "kitti_T": np.array(truths),
    }
    save_fragments(options.output, scans.clouds(chosen), scale=SCALE, compress=False, arrays=arrays)
    print(f"{options.output}: {len(chosen)} scans, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
