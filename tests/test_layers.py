"""The house's floors: imports go down only, heavy libraries are imported late, and the checker itself is checked."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlc_reg

PACKAGE = Path(__file__).resolve().parent.parent / "dlc_reg"

FLOORS = {
    "errors": 0, "_core": 0, "ops": 0,
    "io": 0.5,
    "manifold": 1, "geometry": 1, "metrics": 1,
    "iterate": 2, "protocols": 2,
    "updates": 3, "convexify": 3, "networks": 3,
    "registration": 4, "alignment": 4, "sequence": 4,
    "api": 5, "many": 5, "multiway": 5, "training": 5, "evaluation": 5,
    "cli": 6, "report": 6, "pipelines": 6, "t": 6,
}  # fmt: skip
# a private module is a part of the public one that it was taken out of
OWNERS = {
    "_formats": "io", "_e57": "io", "_ply": "io", "_pcd": "io", "_las": "io", "_answers": "io",
    "_convert": "geometry", "_warping": "geometry",
    "_rays": "convexify", "_star_convexity": "convexify",
    "_alignment_input": "alignment", "_alignment_objective": "alignment", "_alignment_search": "alignment",
    "_alignment_solve": "alignment", "_alignment_result": "alignment", "_alignment_verdict": "alignment",
    "_image_pairs": "protocols", "_images_recipe": "training", "_images_losses": "training",
    "_images_training": "training", "_image_evaluation": "evaluation", "_align_command": "cli",
    "_sequences_data": "protocols", "_sequences_training": "training",
    "_report_charts": "report", "_report_page": "report", "_report_picture": "report", "_report_scene": "report",
    "_console": "cli", "_evaluate_command": "cli", "_many_command": "cli",
    "_search_options": "cli", "_completion_command": "cli", "__main__": "cli",
    "_recipe": "training", "_losses": "training", "_terms": "training", "_registration_recipe": "training",
    "_registration_training": "training", "_parallel": "training", "_checkpoint": "training",
    "_training_log": "training",
    "_methods": "evaluation", "_symmetry": "evaluation", "_landscapes": "evaluation", "_tables": "evaluation",
    "_baselines": "evaluation", "_register_parts": "api", "_register_verdict": "api",
    "_register_options": "api", "_many_list": "many", "_many_work": "many", "_many_child": "many",
    "_many_output": "many", "_multiway_graph": "multiway", "_multiway_result": "multiway",
    "_multiway_settle": "multiway", "_multiway_command": "cli",
    "_around": "protocols", "_training_pairs": "training", "_validation": "training",
}  # fmt: skip
ORDERED = {
    "registration": [
        "result", "budget", "freedom", "steps", "constraint", "frame", "objectives", "uncertainty", "icp",
        "description", "global_search", "probing", "verification", "equivalence", "assignment", "learned",
    ]
}  # fmt: skip
ALLOWED = {
    ("cli", "report"),
    ("t", "pipelines"),
    ("training", "evaluation"),
    ("many", "api"),
    ("multiway", "many"),
}  # among siblings
LAZY = {("registration.result", "report")}  # upwards, but only inside a function
HEAVY = {
    "open3d", "trimesh", "matplotlib", "pypcd4", "laspy", "lazrs", "scipy", "click", "tqdm", "safetensors",
    "small_gicp", "PIL", "cv2", "pyarrow", "pye57",
}  # fmt: skip


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement below `tree`, and whether it stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, lazy
        yield from imports(node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def targets(node: ast.stmt, importer: str, root: Path) -> Iterator[str]:
    """The modules that a statement imports, as "a.b" below the package, "" for the package itself, "!x" outside it."""
    if isinstance(node, ast.Import):
        names = [(alias.name, None) for alias in node.names]
    else:
        assert isinstance(node, ast.ImportFrom)
        base = node.module or ""
        if node.level:
            package = ["dlc_reg", *importer.split(".")][: -node.level]
            base = ".".join([*package, *base.split(".")] if base else package)
        names = [(base, alias.name) for alias in node.names]
    for module, member in names:
        if module.split(".")[0] != "dlc_reg":
            yield "!" + module.split(".")[0]
            continue
        inside = module.split(".")[1:]
        if member is not None and is_module(root.joinpath(*inside), member):
            inside = [*inside, member]
        yield ".".join(inside)


def is_module(folder: Path, name: str) -> bool:
    return name == "_core" or (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def place(module: str) -> tuple[str, str]:
    """(unit, part): "registration.icp" -> ("registration", "icp"), "_ply" -> ("io", "")."""
    unit, _, part = module.partition(".")
    return OWNERS.get(unit, unit), part.partition(".")[0]


def violation(importer: str, imported: str, lazy: bool) -> str | None:
    """Why `importer` must not import `imported`, or None."""
    if imported.startswith("!"):
        late = lazy or imported[1:] not in HEAVY or place(importer)[0] == "cli"  # nothing imports the CLI
        return None if late else f"{imported[1:]} is heavy: import it where it is used"
    if importer == "":
        return None if place(imported)[0] != "cli" else "the package must not import its command line"
    (unit, part), (other, other_part) = place(importer), place(imported)
    if (importer, other) in LAZY:
        return None if lazy else "this way only inside a function"
    if imported == "":
        return None if FLOORS[unit] == 6 else "only floor 6 may import the package as a whole"
    if other == "_core":
        return None if unit == "ops" else "ops is the only door to the native core"
    if unit == other:
        order = ORDERED.get(unit, [])
        if {part, other_part} <= {*order} and part != other_part and order.index(other_part) > order.index(part):
            return f"inside {unit} the order is {' < '.join(order)}"
        return None
    if FLOORS[other] > FLOORS[unit]:
        return f"floor {FLOORS[unit]} must not import floor {FLOORS[other]}"
    if FLOORS[other] == FLOORS[unit] and FLOORS[unit] >= 3 and (unit, other) not in ALLOWED:
        return "siblings must not import each other"
    return None


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        importer = "" if module == "__init__" else module
        if importer and place(importer)[0] not in FLOORS:
            found.append(f"{module}: on no floor; give it one in FLOORS, or an owner in OWNERS")
            continue
        parts = ORDERED.get(place(importer)[0])
        if parts and place(importer)[1] not in [*parts, "__init__"]:
            found.append(f"{module}: has no place in the declared order of its package")
        for node, lazy in imports(ast.parse(path.read_text())):
            for imported in targets(node, importer, root):
                known = imported in ("", "_core") or imported.startswith("!") or place(imported)[0] in FLOORS
                why = violation(importer, imported, lazy) if known else "no such module on any floor"
                if why:
                    found.append(f"{module}:{node.lineno} imports {imported or 'dlc_reg'}: {why}")
    return found


def test_imports_go_down_only():
    assert violations(PACKAGE) == []


def test_heavy_libraries_are_not_imported_with_the_package():
    """Beyond what torch itself brings."""
    where = Path(dlc_reg.__file__).parent.parent  # the one under test, installed or not
    code = (
        f"import sys, numpy, torch\nsys.path.insert(0, {str(where)!r})\nbefore = set(sys.modules)\nimport dlc_reg\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "dlc_reg" in loaded
    assert loaded & HEAVY == set()


GOOD = {
    "__init__.py": "from dlc_reg.api import register\n",
    "errors.py": "",
    "ops/__init__.py": "from dlc_reg import _core\nfrom dlc_reg.errors import InputError\n",
    "io.py": "from dlc_reg._ply import read\n",
    "_ply.py": "def f():\n    import trimesh\n",
    "manifold.py": "from dlc_reg import errors\n",
    "convexify.py": "",
    "iterate.py": "from dlc_reg.manifold import SE3\n",
    "registration/result.py": "from dlc_reg.iterate import Status\ndef f():\n    from dlc_reg.report import page\n",
    "registration/icp.py": "from dlc_reg.registration import result\n",
    "api.py": "from dlc_reg.registration import icp\n",
    "report.py": "import dlc_reg\nfrom dlc_reg.registration.result import Status\n",
    "cli.py": "import click\nfrom dlc_reg.report import page\n",
}


def tree(folder: Path, changes: dict[str, str]) -> Path:
    for name, text in {**GOOD, **changes}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_checker_passes_a_good_tree(tmp_path):
    assert violations(tree(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifold.py", "from dlc_reg.iterate import iterate\n", "floor 1 must not import floor 2"),
        ("manifold.py", "from dlc_reg import iterate\n", "floor 1 must not import floor 2"),
        ("manifold.py", "import dlc_reg.iterate\n", "floor 1 must not import floor 2"),
        ("manifold.py", "from .iterate import iterate\n", "floor 1 must not import floor 2"),
        ("manifold.py", "from . import iterate\n", "floor 1 must not import floor 2"),
        ("manifold.py", "def f():\n    from dlc_reg.api import register\n", "floor 1 must not import floor 5"),
        ("manifold.py", "if True:\n    from dlc_reg.api import register\n", "floor 1 must not import floor 5"),
        ("ops/_x.py", "from ..io import read\n", "floor 0 must not import floor 0.5"),
        ("_ply.py", "from dlc_reg.manifold import SE3\n", "floor 0.5 must not import floor 1"),
        ("updates.py", "from dlc_reg import nothing\n", "only floor 6 may import the package"),
        ("updates.py", "from dlc_reg import convexify\n", "siblings must not import each other"),
        ("networks/points.py", "from dlc_reg.convexify import Star\n", "siblings must not import each other"),
        ("alignment.py", "from dlc_reg.registration.icp import icp\n", "siblings must not import each other"),
        ("report.py", "from dlc_reg.cli import main\n", "siblings must not import each other"),
        ("registration/result.py", "from dlc_reg.registration.icp import icp\n", "inside registration the order is"),
        ("registration/result.py", "from .icp import icp\n", "inside registration the order is"),
        ("registration/result.py", "from dlc_reg.report import page\n", "only inside a function"),
        ("registration/icp.py", "def f():\n    from dlc_reg.report import page\n", "floor 4 must not import floor 6"),
        ("registration/extra.py", "", "no place in the declared order"),
        ("api.py", "from dlc_reg import _core\n", "only door to the native core"),
        ("api.py", "from dlc_reg import __version__\n", "only floor 6 may import the package"),
        ("geometry.py", "import numpy\nfrom scipy.spatial import cKDTree\n", "scipy is heavy"),
        ("geometry.py", "class A:\n    import trimesh.util\n", "trimesh is heavy"),
        ("extra.py", "", "on no floor"),
        ("__init__.py", "from dlc_reg.cli import main\n", "must not import its command line"),
    ],
)
def test_the_checker_catches_a_planted_violation(tmp_path, name, text, message):
    found = violations(tree(tmp_path, {name: text}))
    assert len(found) == 1 and message in found[0], found
