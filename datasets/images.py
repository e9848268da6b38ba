"""Pictures for image alignment: the file that `tools/train.py` and `tools/evaluate.py images` read.

    python datasets/images.py photographs --train FOLDER --test FOLDER --licence TEXT --output photographs.npz
    python datasets/images.py pairs       --train FOLDER --test FOLDER --licence TEXT --output maps.npz
    python datasets/images.py mscoco      --archive FOLDER --output mscoco.npz
    python datasets/images.py google      --archive FOLDER --kind GoogleMap --output googlemap.npz

photographs: any folder of pictures. pairs: aligned pairs, in each file the first in the left half and the second in the
right, as pix2pix's maps have them. Both are scaled so that --height and --width are covered, and cut in the middle
(upright pictures are laid on their side). Without --val, one picture in eight of --train validates.
mscoco: MSCOCO's train2014 and val2014 folders (CC-BY-4.0 annotations; the pictures have their owners' terms), scaled to
240 x 320 as in DLKFM and PRISE. google: GoogleEarth or GoogleMap as DLKFM's authors distribute them, folders
train2014_input, train2014_template, val2014_input, val2014_template of crops that are aligned before the perturbation.
Those crops come from the same pictures in both halves of the official split: --split-by picture (the default) puts all
crops of a picture, named NUMBER_CROP, into one split. Needs Pillow. Neither download has been tried here: their layout
is checked, and no checksum is on record.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dlc_reg.io import replacing

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise SystemExit(f"{folder}: no folder with pictures ({', '.join(sorted(SUFFIXES))})")
    return found


def covered(image: Image.Image, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: scaled to cover, the middle of it."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))


def photographs(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for split in ("train", "val", "test"):
        folder = getattr(options, split)
        for path in tqdm(files(folder), desc=split) if folder else ():
            image = ImageOps.exif_transpose(Image.open(path))
            if (image.height > image.width) != (options.height > options.width):
                image = image.transpose(Image.Transpose.ROTATE_90)
            named = {"name": f"{split}-{path.stem}", "split": placed_in(split, path, options)}
            yield {"picture": covered(image, options.height, options.width), **named}


def pairs(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for split in ("train", "val", "test"):
        folder = getattr(options, split)
        for path in tqdm(files(folder), desc=split) if folder else ():
            both = Image.open(path)
            half = both.width // 2
            left, right = both.crop((0, 0, half, both.height)), both.crop((half, 0, 2 * half, both.height))
            shape = options.height, options.width
            named = {"name": f"{split}-{path.stem}", "split": placed_in(split, path, options)}
            yield {"picture": covered(left, *shape), "partner": covered(right, *shape), **named}


def mscoco(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for split, folder in (("train", "train2014"), ("val", "val2014")):
        chosen = files(options.archive / folder)[: options.most]
        for path in tqdm(chosen, desc=split):
            image = Image.open(path).convert("RGB").resize((320, 240), Image.Resampling.LANCZOS)
            yield {"picture": np.asarray(image), "name": path.stem, "split": split}


def google(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for official in ("train", "val"):
        inputs, templates = (options.archive / f"{official}2014_{kind}" for kind in ("input", "template"))
        for path in tqdm(files(inputs), desc=official):
            partner = templates / path.name
            if not partner.is_file():
                raise SystemExit(f"{partner}: missing, the other image of {path}")
            first, second = (np.asarray(Image.open(p).convert("RGB")) for p in (path, partner))
            if first.shape != second.shape:
                raise SystemExit(f"{path}: {first.shape} and {second.shape}; expected crops before the perturbation")
            split = official if options.split_by == "official" else split_of(path.stem.split("_")[0])
            yield {"picture": first, "partner": second, "name": f"{official}-{path.stem}", "split": split}


def placed_in(folder: str, path: Path, options: argparse.Namespace) -> str:
    """Without --val one picture in eight of --train validates, so that --test stays untouched."""
    return split_of(path.stem) if folder == "train" and options.val is None else folder


def split_of(picture: str) -> str:
    """One picture in eight is held out."""
    return "val" if hashlib.sha256(picture.encode()).digest()[0] % 8 == 0 else "train"


KINDS = {"photographs": photographs, "pairs": pairs, "mscoco": mscoco, "google": google}


def save(path: Path, rows: list[dict[str, object]], licence: str) -> None:
    columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}  # type: ignore[arg-type]
    columns["licence"] = np.full(len(rows), licence)
    with replacing(path, overwrite=True) as draft:
        np.savez_compressed(draft, **columns)
    counts = {str(s): int((columns["split"] == s).sum()) for s in np.unique(columns["split"])}
    print(f"{path}: {len(rows)} pictures of {columns['picture'].shape[1:]}, {counts}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--output", type=Path, required=True)
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", type=Path, help="a folder of pictures")
    parser.add_argument("--archive", type=Path, help="the unpacked data set of mscoco and google")
    parser.add_argument("--licence", help="its terms, kept with every picture")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--most", type=int, default=10_000, help="pictures of a split of mscoco")
    parser.add_argument("--split-by", choices=["picture", "official"], default="picture")
    options = parser.parse_args(arguments)
    known = options.kind in ("mscoco", "google")
    if known and options.archive is None:
        parser.error(f"{options.kind} needs --archive")
    if not known and (options.licence is None or not (options.train or options.val or options.test)):
        parser.error(f"{options.kind} needs --licence and at least one of --train, --val, --test")
    licence = (
        options.licence or {"mscoco": "MSCOCO: the owners' terms, research use", "google": "research use"}[options.kind]
    )
    save(options.output, list(KINDS[options.kind](options)), licence)


if __name__ == "__main__":
    main()
