"""Downloads that can be resumed and are checked, and trees of files that are read without being unpacked."""

from __future__ import annotations

import argparse
import errno
import hashlib
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

USER_AGENT = "dlc_reg-datasets (python-urllib)"
CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def check(path: Path, sha256: str | None, about: str = "") -> None:
    """Stops if the file is not the one whose SHA-256 is given; prints what it is where none is on record."""
    found = sha256_of(path)
    if sha256 is None:
        print(f"{path}: SHA-256 {found} (none on record to compare with; pass --sha256 to check)")
    elif found != sha256.lower():
        raise SystemExit(f"{path}{about}: SHA-256 is {found}, expected {sha256.lower()}: not the file it should be")


def fetch(url: str, path: Path, *, sha256: str | None = None, retries: int = 4, timeout: float = 30.0) -> Path:
    """Downloads `url` to `path`, unless it is there, and checks it.

    What has arrived lies in PATH.part; another run goes on from there, if the server can. A file with a wrong checksum
    is removed. Stops with a message of one line.
    """
    part = path.with_name(path.name + ".part")
    if path.exists():
        check(path, sha256, " (already there; remove it to fetch it again)")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(retries + 1):
        try:
            _receive(url, part, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == retries:
                raise SystemExit(f"{url}: the server answered {error.code} {error.reason}") from None
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise SystemExit(f"{part}: the disk is full; free some space and run again to go on") from None
            if attempt == retries:
                reason = getattr(error, "reason", error)
                message = f"{url}: no connection, or it broke ({reason}). Are you offline? Run again to go on where it"
                raise SystemExit(f"{message} stopped, or fetch it by other means and pass --archive FILE") from None
        time.sleep(min(2**attempt, 8) * 0.5)
    try:
        check(part, sha256, f" (from {url})")
    except SystemExit:
        part.unlink()
        raise
    return part.replace(path)


def _receive(url: str, part: Path, timeout: float) -> None:
    """One connection: appends to `part` what is missing of it. A short answer is a ConnectionError."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") != f"bytes */{have}":  # else: it was complete
            part.unlink()
            raise ConnectionError("the file on the server is another one than that begun") from None
        return
    with reply:
        if reply.status != 206 or not str(reply.headers.get("Content-Range")).startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise SystemExit(
                f"{part.parent}: {(total - have) / 1e6:.0f} MB to come, {free / 1e6:.0f} MB free on the disk"
            )
        _copy(reply, part, have, total)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def _copy(reply: HTTPResponse, part: Path, have: int, total: int | None) -> None:
    bar = tqdm(desc=part.name.removesuffix(".part"), initial=have, total=total, unit="B", unit_scale=True)
    with bar, part.open("ab" if have else "wb") as file:
        for chunk in iter(lambda: reply.read1(CHUNK), b""):
            file.write(chunk)
            bar.update(len(chunk))


def add_archive_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--archive", type=Path, help="the archive, or a folder with its files, if it is already here")
    parser.add_argument("--sha256", help="what the archive's SHA-256 must be")
    parser.add_argument("--download", type=Path, default=Path.home() / ".cache" / "dlc_reg", help="where to keep it")


def obtain(options: argparse.Namespace, url: str, sha256: str | None = None) -> Path:
    """The archive that the options name, or that of `url`, fetched; checked against --sha256 or the one on record."""
    expected = options.sha256 or sha256
    if options.archive is None:
        return fetch(url, options.download / url.rsplit("/", 1)[-1], sha256=expected)
    if not options.archive.exists():
        raise SystemExit(f"{options.archive}: no such file or folder")
    if options.archive.is_file():
        check(options.archive, expected)
    elif options.sha256:
        raise SystemExit("--sha256 is of an archive, and --archive names a folder")
    return options.archive


class Tree:
    """The files of a folder or of a zip archive by their names. They are read, never written anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        elif zipfile.is_zipfile(path):
            self._zip = zipfile.ZipFile(path)
            self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        else:
            raise SystemExit(f"{path}: neither a folder nor a zip archive; if it came from a download, remove it")

    def read(self, name: str, limit: int = 64 << 20) -> bytes:
        """The file's bytes; stops at more than `limit` of them, whatever the archive's directory claims."""
        try:
            file = (self.path / name).open("rb") if self.path.is_dir() else self._zip.open(name)
            with file:
                data = file.read(limit + 1)
        except (KeyError, FileNotFoundError):
            raise SystemExit(f"{self.path}: has no {name}") from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise SystemExit(f"{self.path}: {name} cannot be read ({error})") from None
        if len(data) > limit:
            raise SystemExit(f"{self.path}: {name} is larger than {limit} bytes")
        return data

    def find(self, end: str) -> str:
        """The one name that ends so, after a slash or as a whole."""
        found = [name for name in self.names if name == end or name.endswith("/" + end)]
        if len(found) != 1:
            raise SystemExit(f"{self.path}: {len(found)} files called {end}, expected one")
        return found[0]
