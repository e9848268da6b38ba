"""The documents tell the truth: their code runs, their commands exist, their links lead somewhere.

Blocks marked `python` and `sh` run, page by page, in the order of the page and in a folder that holds the samples; a
`text` block right after one is what it prints (numbers to a quarter, for machines round differently), with "..." for
lines left out; of an `sh` block that is its last command. A line that ends in "# exit code 2" ends so. (The README's
`sh` blocks install and test the package: `.ci/run` runs them.)

Commands in other blocks (`console`, indented) need data that is not in the repository: that the command, its options
and the files of the repository that it names exist is checked.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import PACKAGE, ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
OPTIONAL = ("open3d", "laspy", "pye57", "distributed")  # extras that the test extra does not ask for
FOLDERS = ("tools", "benchmarks", "datasets", "recipes", "tests")


def blocks(text: str, *languages: str) -> list[tuple[int, str, str]]:
    """(number of the line before the first, language, code) of each fenced block in one of the languages."""
    return [(text[: m.start(2)].count("\n"), m[1], m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def lines_of(code: str) -> list[str]:
    """The commands of a block, without prompts."""
    return [line.removeprefix("$ ").strip() for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def run_line(line: str) -> str:
    """Runs a line of a shell block, and returns what it printed on stdout."""
    expected = int(code[1]) if (code := re.search(r"# exit code (\d+)$", line)) else 0
    if line.startswith("dlc-reg ") and not re.search(r"[|<>;&]", line):  # here, which saves importing torch once more
        from dlc_reg.cli import main

        result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == expected, f"{line}\n{result.output}"
        return result.stdout
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": PACKAGE}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=environment, capture_output=True, text=True)
    assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def alike(shown: str, printed: str) -> bool:
    """Whether two lines differ in white space and by a quarter of each number at most."""
    words = [NUMBER.sub("#", " ".join(line.split())) for line in (shown, printed)]
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (shown, printed)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=0.25)


def assert_prints(shown: str, printed: str, where: str) -> None:
    """Each line that a page shows was printed, in that order, and nothing between but where it says "..."."""
    rest = [line for line in printed.splitlines() if line.strip()]
    gap = False
    for line in (line for line in shown.splitlines() if line.strip()):
        if line.strip() == "...":
            gap = True
            continue
        at = next((i for i, other in enumerate(rest if gap else rest[:1]) if alike(line, other)), None)
        assert at is not None, f"{where}: {line!r} is not what is printed:\n{printed}"
        rest, gap = rest[at + 1 :], False
    assert gap or not rest, f"{where}: more is printed than is shown:\n{printed}"


def execute(text: str, name: str) -> None:
    """Runs a page's blocks in order, those in Python in one namespace; errors point at the document's own lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = None  # by the block just before
    end = -1  # where it ends
    for line, language, code in blocks(text, "python", "sh", "text"):
        if language == "text":
            if printed is not None and line <= end + 4:  # so near that it shows the output
                assert_prints(code, printed, f"{name}:{line}")
            printed = None
            continue
        end = line + code.count("\n")
        if language == "sh":
            printed = None if name == "README.md" else [run_line(command) for command in lines_of(code)][-1]
            continue
        with redirect_stdout(StringIO()) as output:
            try:
                exec(compile("\n" * line + code, name, "exec"), namespace)
            except ModuleNotFoundError as missing:
                if missing.name in OPTIONAL:
                    pytest.skip(f"{name} uses {missing.name}, which is not installed")
                raise
        printed = output.getvalue()


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_blocks_run(document, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "datasets" / "samples", tmp_path / "datasets" / "samples")
    for folder in FOLDERS:
        if folder != "datasets":
            (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    execute(document.read_text(encoding="utf-8"), str(document.relative_to(ROOT)))
    if "matplotlib.pyplot" in sys.modules:  # figures that a page draws would be there for other tests
        sys.modules["matplotlib.pyplot"].close("all")


def test_a_wrong_block_would_be_noticed(tmp_path, monkeypatch):
    text = "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as caught:
        execute(text, "example.md")
    assert caught.traceback[-1].lineno == 9  # counted from 0: the document's tenth line
    for wrong in ("dlc-reg info missing.ply", "false", "dlc-reg --version # exit code 2"):
        with pytest.raises(AssertionError):
            execute(f"```sh\n{wrong}\n```\n", "example.md")
    print_three = "```python\nprint('one 1.5\\ntwo', 2)\nprint('three')\n```\n\n```text\n{}\n```\n"
    execute(print_three.format("one 1.6\n...\nthree"), "example.md")
    for wrong in ("one 1\n...", "one 1.5\nthree", "...\ntwo 2", "two 2\n...", "one 1.5\ntwo 2\nthree\nfour"):
        with pytest.raises(AssertionError):
            execute(print_three.format(wrong), "example.md")


def commands() -> list[tuple[str, str]]:
    """(document, line) of every command that only its reader can run, and of those in `sh`."""
    found = []
    for document, name in zip(DOCUMENTS, NAMES, strict=True):
        text = document.read_text(encoding="utf-8")
        prose = FENCE.sub("", text)
        fenced = [code for _, _, code in blocks(text, "sh", "bash", "shell", "console")]
        indented = "\n".join(re.findall(r"^    (.*)$", prose, re.MULTILINE))
        inline = [span for span in " ".join(prose.split()).split("`")[1::2] if " -c " not in span]
        for line in (*(line for code in (*fenced, indented) for line in lines_of(code)), *inline):
            start = re.match(r"(?:\w+=\S+ )*(dlc-reg|python|torchrun) ", line)
            if start and not line.startswith("python -"):
                found.append((name, line))
    return found


def test_the_readme_shows_the_command():
    assert any(document == "README.md" and line.startswith("dlc-reg ") for document, line in commands())


@pytest.mark.parametrize(("document", "line"), commands())
def test_commands_and_options_exist(document, line):
    words = shlex.split(re.sub(r"\[(.*?)\]", r"\1", line), comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "||")), len(words))]
    words = [word.rstrip(";") for word in words]
    for word in words:  # the samples, recipes and scripts that it names
        if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert (ROOT / word).exists(), f"{document}: {line}"
    if "dlc-reg" not in words:
        script = next(ROOT / word for word in words if word.endswith(".py"))
        known = options_of(script)
        for word in words[words.index(str(script.relative_to(ROOT))) + 1 :]:
            assert not word.startswith("--") or word.split("=")[0] in known, f"{document}: {line}"
        return
    from dlc_reg.cli import main

    words = words[words.index("dlc-reg") + 1 :]
    assert isinstance(main, click.Group)
    if words[0].startswith("-"):
        known = {name for option in main.params for name in option.opts} | {"--help"}
        assert words[0] in known, f"{document}: {line}"
        return
    assert words[0] in main.commands, f"{document}: {line}"
    command = main.commands[words[0]]
    command.make_parser(click.Context(command)).parse_args(words[1:])  # raises on an unknown option


def options_of(script: Path, seen: frozenset[Path] = frozenset()) -> set[str]:
    """The options that a script, or a file beside it that it imports, has as texts."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    found = texts | {f"--{text}" for text in texts}  # some are made of the names of what they set
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names} | texts
    for other in (script.parent / f"{name}.py" for name in names if name.isidentifier()):
        if other.exists() and other not in seen | {script}:
            found |= options_of(other, seen | {script})
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_within_the_project_lead_somewhere(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        path = target.split("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            assert (Path(document).parent / path).exists(), f"{document.name}: {target}"
