"""Debian packages as streams of files, and the licences in their copyright files. Needs dpkg-deb."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path


def deb_files(package: Path, endings: tuple[str, ...], limit: int = 256 << 20) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that end so, of at most `limit` bytes each, in the package's order.

    Nothing is unpacked to disk.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    if shutil.which(command[0]) is None:
        raise SystemExit("dpkg-deb is not here: it comes with Debian and Ubuntu, elsewhere install dpkg")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    wanted = member.isfile() and member.size <= limit and member.name.endswith(endings)
                    file = archive.extractfile(member) if wanted else None
                    if file is not None:
                        yield member.name.removeprefix("./"), file.read()
        except tarfile.TarError as error:
            raise SystemExit(f"{package}: not a Debian package, or a damaged one ({error})") from None
        process.stdout.read()  # padding, or dpkg-deb would complain of a broken pipe
    if process.returncode:
        raise SystemExit(f"{package}: dpkg-deb failed")


def licences(copyright_file: str) -> list[tuple[str, str]]:
    """(pattern, licence) of each `Files:` of a machine-readable Debian copyright file; the last that matches counts."""
    found = []
    for stanza in re.split(r"\n\s*\n", copyright_file):
        fields = dict(re.findall(r"^(Files|License): *((?:.*)(?:\n .*)*)", stanza, re.M))
        if len(fields) == 2:
            found += [(pattern, fields["License"].split("\n")[0].strip()) for pattern in fields["Files"].split()]
    return found


def licence_of(path: str, patterns: list[tuple[str, str]]) -> str:
    return next((licence for pattern, licence in reversed(patterns) if fnmatch.fnmatchcase(path, pattern)), "unknown")
