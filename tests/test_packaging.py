"""What packages say of the project agrees with the project; `packaging/check.sh` builds and uses them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE, ROOT

import dlc_reg
from dlc_reg.cli import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = re.compile(r"[\w-]+")


def names(requirements: list[str]) -> set[str]:
    return {NAME.match(requirement)[0].lower() for requirement in requirements}


def test_torch_is_no_build_requirement():
    assert names(PROJECT["build-system"]["requires"]) == {"scikit-build-core", "nanobind"}


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == dlc_reg.__version__
    assert re.search(r"^  version: (.+)$", recipe, re.M)[1] == dlc_reg.__version__
    assert re.search(r"^## (\S+)", changelog, re.M)[1] == dlc_reg.__version__


def test_conda_needs_what_pip_needs():
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    block = recipe[recipe.index("  run:\n") : recipe.index("tests:\n")]
    listed = re.findall(r"(?:- |then: )([\w-]+ >=[\d.]+)", block)
    assert {line.replace("pytorch", "torch").replace(" ", "") for line in listed} == {
        requirement.split(";")[0] for requirement in PROJECT["project"]["dependencies"]
    }


def test_doctor_knows_the_extras():
    extras = PROJECT["project"]["optional-dependencies"].keys()
    assert EXTRAS.keys() <= extras
    assert extras - EXTRAS.keys() <= {"test", "dev", "docs"}  # for those who work on it


def test_the_samples_come_along():
    for path in dlc_reg.sample_pair():
        assert path.read_bytes() == (ROOT / "datasets" / "samples" / "bunny" / path.name).read_bytes()
    assert (dlc_reg.sample_pair()[0].parents[1] / "README.md").is_file()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_the_package_runs_as_a_module(arguments):
    command = [sys.executable, "-m", "dlc_reg", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert {"--version": dlc_reg.__version__, "--help": "Usage: python -m dlc_reg"}[arguments[0]] in answer.stdout


def test_types_are_shipped():
    assert (Path(dlc_reg.__file__).parent / "py.typed").is_file()


def test_the_example_for_type_checkers_runs():
    example = Path(__file__).with_name("typing_example.py")
    exec(compile(example.read_text(encoding="utf-8"), str(example), "exec"), {"__name__": "example"})
