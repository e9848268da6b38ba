"""What users may rely on, in one file: a change to it is made on purpose, and shows in review.

    python tests/test_public_api.py        writes tests/public_api.txt anew; docs/versions.md says what a change needs

A line is a name with its parameters and their defaults; types, and what is inherited from elsewhere, are left out.
"""

from __future__ import annotations

import ast
import difflib
import enum
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import dlc_reg
from dlc_reg.cli import main

LIST = Path(__file__).with_name("public_api.txt")
MODULES = (
    "dlc_reg",
    "dlc_reg.alignment",
    "dlc_reg.convexify",
    "dlc_reg.errors",
    "dlc_reg.evaluation",
    "dlc_reg.geometry",
    "dlc_reg.io",
    "dlc_reg.iterate",
    "dlc_reg.manifold",
    "dlc_reg.metrics",
    "dlc_reg.ops",
    "dlc_reg.pipelines.registration",
    "dlc_reg.protocols",
    "dlc_reg.sequence",
    "dlc_reg.t.pipelines.registration",
    "dlc_reg.training",
    "dlc_reg.updates",
)


def exported(module: ModuleType) -> list[str]:
    """`__all__`, or else what the module itself defines without a leading underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    assert module.__file__ is not None
    names = set()
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(name for name in names if not name.startswith("_"))


def parameters(callable_: Any) -> str:
    """(source, target, *, init=None): without types, and without self."""
    try:
        signature = inspect.signature(callable_)
    except (TypeError, ValueError):
        return "(...)"
    kept = [p.replace(annotation=p.empty) for name, p in signature.parameters.items() if name not in ("self", "cls")]
    text = str(signature.replace(parameters=kept, return_annotation=signature.empty))
    text = re.sub(r"<([\w.]+)[^<>]*>", r"<\1>", text)  # addresses in memory differ from run to run
    return " ".join(text.split())


def ours(cls: type) -> Iterator[tuple[str, Any]]:
    """Public attributes of a class that are defined here, and its fields."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "dlc_reg":
            fields = dict.fromkeys(inspect.get_annotations(base))
            for name, value in (fields | dict(vars(base))).items():
                found.setdefault(name, value)
    yield from sorted((name, value) for name, value in found.items() if not name.startswith("_"))


def described(name: str, value: Any, seen: dict[int, str]) -> Iterator[str]:
    if isinstance(value, ModuleType):
        yield f"{name} (module)"
    elif not callable(value):
        yield name
    elif id(value) in seen:
        yield f"{name} = {seen[id(value)]}"
    elif not inspect.isclass(value):
        seen[id(value)] = name
        yield name + parameters(value)
    elif issubclass(value, enum.Enum):
        seen[id(value)] = name
        yield name
        yield from (f"{name}.{member.name} = {member.value!r}" for member in value)
    else:
        seen[id(value)] = name
        yield name + parameters(value)
        for attribute, inner in ours(value):
            function = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner
            yield f"{name}.{attribute}" + (parameters(function) if inspect.isfunction(function) else "")


def commands() -> Iterator[str]:
    for name, command in sorted(main.commands.items()):
        words = [p.human_readable_name for p in command.params if isinstance(p, click.Argument)]
        flags = [flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)]
        yield from (f"$ dlc-reg {name} {word}" for word in [*words, *sorted(flags)])


def public() -> list[str]:
    seen: dict[int, str] = {}
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        for member in exported(module):
            lines += described(f"{name}.{member}", getattr(module, member), seen)
    return [*lines, *commands()]


def test_the_public_names_are_those_of_the_list():
    listed = LIST.read_text(encoding="utf-8").splitlines()
    difference = list(difflib.unified_diff(listed, public(), "tests/public_api.txt", "now", lineterm="", n=0))
    assert not difference, "\n".join(
        ["the public API has changed; if on purpose, run: python tests/test_public_api.py", *difference]
    )


def test_a_change_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    def register(source, target, *, seed=1):
        pass

    monkeypatch.setattr(dlc_reg, "register", register)
    monkeypatch.setattr(dlc_reg, "__all__", [name for name in dlc_reg.__all__ if name != "sample_pair"])
    with pytest.raises(AssertionError) as caught:
        test_the_public_names_are_those_of_the_list()
    text = str(caught.value)
    assert "+dlc_reg.register(source, target, *, seed=1)" in text and "-dlc_reg.sample_pair()" in text


def test_versions_md_names_the_public_modules():
    document = LIST.parent.parent / "docs" / "versions.md"
    named = set(re.findall(r"`(dlc_reg[\w.]*)`", document.read_text(encoding="utf-8")))
    assert named == set(MODULES)
    known = {module.name for module in pkgutil.walk_packages(dlc_reg.__path__, "dlc_reg.")}
    assert set(MODULES) - {"dlc_reg"} <= known


if __name__ == "__main__":
    LIST.write_text("\n".join(public()) + "\n", encoding="utf-8")
    print(f"{len(public())} lines in {LIST}; docs/versions.md says what a change needs")
