"""MkDocs' hooks: what lies beside docs/ is part of the site, and every link leads where it leads on GitHub.

The README is the site's first page, and the README files of benchmarks/ and datasets/ are pages of it, without a copy.
Links are written as the repository has them, so here they are turned into the site's paths, in which docs/ is the root.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("README.md", "CHANGELOG.md", "benchmarks/README.md", "datasets/README.md", "datasets/samples/README.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    for path in BESIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    folder = posixpath.dirname(here if here in BESIDE else f"docs/{here}")

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    return LINK.sub(relink, markdown)
