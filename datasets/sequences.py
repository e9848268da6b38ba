"""Labelled sequences for `recipes/sequences/`: the adding problem, images read as sequences, inertial sensors.

    python datasets/sequences.py adding --output adding.npz [--length 100]
    python datasets/sequences.py mnist --output mnist.npz                    # fetches 11 MB, or --archive FOLDER
    python datasets/sequences.py fashion-mnist --output fashion.npz          # or: apt-get install dataset-fashion-mnist
    python datasets/sequences.py har-2 --output har2.npz                     # fetches 61 MB, or --archive FILE.zip
    python datasets/sequences.py basic-motions --archive aeon-*.whl --output motions.npz   # pip download --no-deps aeon

adding: 1,000 sequences to validate and 1,000 to test on; those to train on are made afresh while training.
mnist, fashion-mnist: the four idx files; a folder may hold the test half alone, which is then split 8,000 / 1,000 /
1,000 and says so in its title. har-2: 128 steps of 9 channels, six activities merged to two (sitting, laying and
walking upstairs against the others); the noisy form pads when read (recipe: data.length). basic-motions: 100 steps of 6
channels, 4 activities, 40 sequences to train and 40 to test on. Channels of sensors are standardised by the training
half.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _fetch import Tree, add_archive_options, check, fetch, obtain

from dlc_reg._sequences_data import Sequences, adding
from dlc_reg.io import replacing

URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "har-2": "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {  # of those that were at hand; what else is fetched is printed
    "mnist": {
        "t10k-images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "debian": {
        "train-images": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
}
CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion-mnist": ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"],
}
CHANNELS = [f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"]
FIRST_CLASS = (2, 4, 6)  # HAR's walking upstairs, sitting, laying


def make_adding(options: argparse.Namespace) -> Sequences:
    rng = np.random.default_rng(2_000_003)
    values, targets = zip(*(adding(rng, options.length) for _ in range(2000)), strict=True)
    split = np.repeat(["val", "test"], 1000)
    title = f"adding problem, {options.length} steps"
    return Sequences(np.stack(values), np.array(targets, np.float32), split, np.zeros(0, "<U1"), title)


def make_images(options: argparse.Namespace) -> Sequences:
    """From a folder of idx files, Debian's or one that they are fetched to."""
    name, folder = options.kind, options.archive
    if folder is None:
        debian = name == "fashion-mnist" and DEBIAN.is_dir()
        folder = DEBIAN if debian else options.download / name
        for half in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                file = f"{half}-{kind}-ubyte.gz"
                digest = SHA256.get("debian" if debian else name, {}).get(f"{half}-{kind[:6]}")
                if debian:
                    check(folder / file, digest)
                else:
                    fetch(f"{URLS[name]}/{file}", folder / file, sha256=digest)
    tree, halves = Tree(folder), {}
    for half, split in (("train", "train"), ("t10k", "test")):
        found = [n for n in tree.names if n.startswith(f"{half}-images-idx3-ubyte")]
        if found:
            images = read_idx(tree.read(found[0]), 3)
            halves[split] = images, read_idx(tree.read(found[0].replace("images-idx3", "labels-idx1")), 1)
    if "test" not in halves:
        raise SystemExit(f"{folder}: has no t10k-images-idx3-ubyte.gz")
    title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[name]
    if "train" not in halves:
        title += ", its test half alone (8,000 / 1,000 / 1,000)"
    values, target = (np.concatenate(column) for column in zip(*halves.values(), strict=True))
    split = np.concatenate([np.full(len(labels), half) for half, (_, labels) in halves.items()]).astype("<U5")
    if "train" not in halves:
        split[:] = np.repeat(["train", "val", "test"], [len(values) - 2000, 1000, 1000])
    return Sequences(values, target.astype(np.int64), split, np.array(CLASSES[name]), title)


def read_idx(data: bytes, dimensions: int) -> np.ndarray:
    """An idx file of bytes, gzipped or not."""
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    shape = np.frombuffer(data[4 : 4 + 4 * dimensions], ">u4").astype(int)
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != 4 + 4 * dimensions + shape.prod():
        raise SystemExit(f"not an idx file of bytes in {dimensions} dimensions, or a damaged one")
    return np.frombuffer(data[4 + 4 * dimensions :], np.uint8).reshape(shape)


def make_har(options: argparse.Namespace) -> Sequences:
    tree = inner_zip(Tree(obtain(options, URLS["har-2"])))
    values, target, split = [], [], []
    for half in ("train", "test"):
        read = [read_table(tree, f"Inertial Signals/{channel}_{half}.txt") for channel in CHANNELS]
        values.append(np.stack(read, axis=-1))
        activities = read_table(tree, f"{half}/y_{half}.txt").astype(int).ravel()
        target.append(~np.isin(activities, FIRST_CLASS))
        split += [half] * len(activities)
    classes = ["sitting, laying, walking upstairs", "standing, walking, walking downstairs"]
    return standardised(np.concatenate(values), np.concatenate(target), split, classes, "HAR-2")


def inner_zip(tree: Tree) -> Tree:
    """The archive has another one within; or is that one, or a folder."""
    found = [name for name in tree.names if name.endswith("UCI HAR Dataset.zip")]
    if not found:
        return tree
    inner = Tree.__new__(Tree)
    inner.path, inner._zip = tree.path, zipfile.ZipFile(io.BytesIO(tree.read(found[0], 256 << 20)))
    inner.names = inner._zip.namelist()
    return inner


def read_table(tree: Tree, end: str) -> np.ndarray:
    return np.loadtxt(io.BytesIO(tree.read(tree.find(end))), dtype=np.float32, ndmin=2)


def make_motions(options: argparse.Namespace) -> Sequences:
    if options.archive is None:
        raise SystemExit("--archive: the wheel of aeon (pip download --no-deps aeon), or a folder with its .ts files")
    tree, values, names, split = Tree(options.archive), [], [], []
    for half in ("train", "test"):
        found, labels = read_ts(tree.read(tree.find(f"BasicMotions_{half.upper()}.ts")).decode())
        values, names, split = [*values, found], names + labels, split + [half] * len(labels)
    classes = sorted(set(names))
    target = np.array([classes.index(name) for name in names])
    return standardised(np.concatenate(values), target, split, classes, "BasicMotions")


def read_ts(text: str) -> tuple[np.ndarray, list[str]]:
    """Values (S, T, D) float32 and labels of a .ts file whose series are of one length: channels apart by colons."""
    lines = [line for line in re.split(r"^@data\s*$", text, flags=re.M | re.I)[-1].splitlines() if line.strip()]
    parts = [line.split(":") for line in lines]
    try:
        values = np.array([[p.split(",") for p in channels[:-1]] for channels in parts], np.float32)
    except ValueError as error:
        raise SystemExit(f"not a .ts file of series of one length ({error})") from None
    return values.transpose(0, 2, 1), [channels[-1].strip() for channels in parts]


def standardised(values: np.ndarray, target: np.ndarray, split: list[str], classes: list[str], title: str) -> Sequences:
    """Each channel with mean 0 and deviation 1 over the training half."""
    training = values[np.array(split) == "train"].astype(np.float64)
    mean, deviation = training.mean((0, 1)), training.std((0, 1))
    values = ((values - mean) / np.maximum(deviation, 1e-12)).astype(np.float32)
    return Sequences(values, target.astype(np.int64), np.array(split), np.array(classes), title)


KINDS: dict[str, Callable[[argparse.Namespace], Sequences]] = {
    "adding": make_adding,
    "mnist": make_images,
    "fashion-mnist": make_images,
    "har-2": make_har,
    "basic-motions": make_motions,
}
LICENCES = {"fashion-mnist": "Expat", "har-2": "CC-BY-4.0", "adding": "CC0-1.0"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--length", type=int, default=100, help="steps of the adding problem")
    add_archive_options(parser)
    options = parser.parse_args(arguments)
    made = KINDS[options.kind](options)
    columns = {"values": made.values, "target": made.target, "split": made.split, "classes": made.classes}
    licence = np.array([LICENCES.get(options.kind, "not stated")])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output, overwrite=True) as draft:
        with draft.open("wb") as file:
            np.savez_compressed(file, **columns, title=np.array(made.title), licence=licence)
        made = Sequences.load(draft)
    counts = ", ".join(f"{(made.split == split).sum()} {split}" for split in np.unique(made.split))
    print(f"{options.output}: {made.title}, {made.values.shape[1:]} each, {counts}, {made.checksum}")


if __name__ == "__main__":
    main()
