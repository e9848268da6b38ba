"""docs/extending.md keeps its promises. That its code runs, and finds what it says, is tested with all documents."""

from __future__ import annotations

import ast
import re

from conftest import ROOT
from test_readme import DOCUMENTS, blocks

PAGE = ROOT / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")


def head() -> str:
    """The block that says what the head is."""
    return next(code for *_, code in blocks(TEXT, "python") if "class " in code)


def test_the_page_is_among_those_that_are_executed():
    assert PAGE in DOCUMENTS and sum("assert " in code for *_, code in blocks(TEXT, "python")) >= 1


def test_a_head_takes_twenty_lines():
    lines = [line for line in head().splitlines() if line.strip()]
    assert len(lines) <= 20
    defined = {node.name for node in ast.walk(ast.parse(head())) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined >= {"Frequency", "residual", "value", "convexify", "solve"}


def test_the_example_is_none_of_the_heads_that_exist():
    imported = set(re.findall(r"(?:from|import) (dlc_reg[\w.]*)", "".join(code for *_, code in blocks(TEXT, "python"))))
    assert imported == {"dlc_reg", "dlc_reg.manifold", "dlc_reg.updates"}
