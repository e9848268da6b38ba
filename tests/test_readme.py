"""The documents tell the truth: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import click
import pytest
from conftest import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OPTIONAL = ("open3d", "laspy", "pye57")  # extras that the test extra does not ask for


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """(number of the line before the first, code) of each fenced block in one of the languages."""
    return [(text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def execute(text: str, name: str) -> None:
    """Runs the Python blocks in order in one namespace; errors point at the document's own lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(text, "python"):
        try:
            exec(compile("\n" * line + code, name, "exec"), namespace)
        except ModuleNotFoundError as missing:
            if missing.name in OPTIONAL:
                pytest.skip(f"{name} uses {missing.name}, which is not installed")
            raise


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run(document, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "datasets" / "samples", tmp_path / "datasets" / "samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    execute(document.read_text(encoding="utf-8"), str(document.relative_to(ROOT)))
    if "matplotlib.pyplot" in sys.modules:  # figures that a page draws would be there for other tests
        sys.modules["matplotlib.pyplot"].close("all")


def test_a_wrong_block_would_be_noticed():
    text = "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as caught:
        execute(text, "example.md")
    assert caught.traceback[-1].lineno == 9  # counted from 0: the document's tenth line


def commands() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for _, code in blocks(document.read_text(encoding="utf-8"), "sh", "bash", "shell", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").strip()
                if line.startswith("dlc-reg "):
                    found.append((str(document.relative_to(ROOT)), line))
    return found


def test_the_readme_shows_the_command():
    assert any(document == "README.md" for document, _ in commands())


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_and_options_exist(document, line):
    from dlc_reg.cli import main

    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "||")), len(words))]
    assert isinstance(main, click.Group)
    if words[0].startswith("-"):
        known = {name for option in main.params for name in option.opts} | {"--help"}
        assert words[0] in known, f"{document}: {line}"
        return
    assert words[0] in main.commands, f"{document}: {line}"
    command = main.commands[words[0]]
    command.make_parser(click.Context(command)).parse_args(words[1:])  # raises on an unknown option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        path = target.split("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            assert (Path(document).parent / path).exists(), f"{document.name}: {target}"
