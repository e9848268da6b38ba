"""docs/architecture.md is true: the floors it draws, the folders it names, and what it says that additions touch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PACKAGE, ROOT
from learning import TABLE, Tiny, blocks
from registering import NEAR, distance, move, pose
from scipy.spatial import cKDTree
from test_layers import ALLOWED, FLOORS

import dlc_reg
from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.frame import Pair
from dlc_reg.registration.learned.frame import ARCHITECTURES, architecture
from dlc_reg.registration.objectives import OBJECTIVES, Generalized
from dlc_reg.training import build_network, make_recipe, task_of

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_floors_are_drawn_as_they_are():
    drawn = {}
    for floor, modules in re.findall(r"^floor ([\d.]+) +(.*?) *\|", PAGE, re.MULTILINE):
        drawn |= {module.rstrip("/"): float(floor) for module in modules.split()}
    assert drawn == {module: floor for module, floor in FLOORS.items() if module != "_core"}
    (sentence,) = re.findall(r"Beside one another, only (.*?)\.", PAGE, re.DOTALL)
    said = re.findall(r"`(\w+)`\s+may import `(\w+)`|`(\w+)`\s+`(\w+)`", sentence)
    assert {tuple(filter(None, pair)) for pair in said} == ALLOWED


def test_every_folder_of_code_has_one_responsibility():
    named = {row[0].strip("`").rstrip("/") for row in rows("Folders")}
    assert all((ROOT / name).is_dir() for name in named)
    package = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "dlc_reg").glob("**/__init__.py")}
    inside = {name for name in package if not name.startswith(("dlc_reg/t/", "dlc_reg/pipelines/"))}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert inside | native <= named


def test_the_files_that_additions_touch_exist():
    """A name in capitals stands for one that is to be written."""
    for what, count, files in rows("Files touched"):
        paths = re.findall(r"`([\w./*]+\.\w+)`", files)
        assert paths or count.startswith("0"), what
        for path in paths:
            found = list(ROOT.glob(re.sub(r"[A-Z]{3,}(?!\w*\.md)", "*", path)))
            assert found, f"{what}: {path}"


# --- an objective: one file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineToLine(Generalized):
    """Distances across the line along which a point's neighbours lie."""

    def complete(self, cloud: PointCloud) -> PointCloud:
        line = torch.linalg.eigh(ops.estimate_covariances(cloud.points, 10).double())[1][..., 2].float()
        across = torch.eye(3) - line[:, :, None] * line[:, None, :]
        spread = torch.eye(3) - (1 - self.epsilon) * across
        return cloud.attach(covariances=spread[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])


@pytest.fixture
def line_to_line(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "line_to_line", LineToLine())


def wires(rng: np.random.Generator, count: int) -> np.ndarray:
    """(4 count, 3) on four straight wires, no two parallel or as long: no symmetry."""
    along = rng.uniform(0, 1, (4, count, 1))
    begin = np.array([[0.0, 0, 0], [1, 0, 0.2], [0, 1, 1], [1, 1, 0]])
    end = np.array([[1.0, 0.1, 0], [1.2, 1, 0.3], [0.4, 0.2, 1.5], [0.9, 0.7, 1]])
    return (begin[:, None] + along * (end - begin)[:, None]).reshape(-1, 3)


def test_an_objective_in_one_file_is_a_method_of_register(line_to_line):
    rng = np.random.default_rng(0)
    truth = pose([1, 2, 3], 4.0, (0.03, -0.02, 0.01))
    source, target = wires(rng, 300), move(truth, wires(rng, 300))
    found = dlc_reg.register(source, target, method="line_to_line")
    assert distance(found.transformation, truth, source) < NEAR / 10
    assert found.settings["method"] == "line_to_line" and found.iterations > 1


def test_its_cost_is_the_closed_form_in_float64():
    rng = np.random.default_rng(1)
    source, target = (PointCloud.from_any(wires(rng, 80)) for _ in range(2))
    objective = LineToLine()
    pair = Pair.prepare(source, target, objective, max_distance=0.2)
    T = pose([3, 1, 2], 3.0, (0.01, 0.02, -0.01))
    evaluation = objective.evaluate(pair.to_omega(T), pair)
    p, q = move(T, source.to_absolute()), target.to_absolute()
    apart, nearest = cKDTree(q).query(p)
    near = apart < 0.2
    packed = [objective.complete(cloud).covariances.double().numpy() for cloud in (source, target)]
    own, other = (c[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3) for c in packed)
    both = other[nearest] + T[:3, :3] @ own @ T[:3, :3].T
    d = (p - q[nearest])[near]
    cost = 0.5 * np.einsum("ni,nij,nj", d, np.linalg.inv(both[near]), d)
    assert near.mean() > 0.8 and evaluation.count == near.sum()
    np.testing.assert_allclose(evaluation.cost, cost, rtol=1e-3)


def test_without_its_line_it_is_none(thin_source, thin_target):
    with pytest.raises(InputError, match="method: got 'line_to_line'"):
        dlc_reg.register(thin_source, thin_target, method="line_to_line")


# --- a network: one file and a recipe --------------------------------------------------------------------------------


def test_a_network_in_a_script_is_built_by_a_recipe_and_comes_back_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "by-radius", None)  # goes away with the test

    @architecture("by-radius")
    class ByRadius(Tiny):
        def __init__(self, width: int = 2) -> None:
            super().__init__(width)

    recipe = make_recipe({**TABLE, "architecture": "by-radius", "network": {"width": 3}})
    network = build_network(recipe)
    assert type(network) is ByRadius and network.feature.out_features == 3
    task_of(recipe).save(tmp_path / "weights.safetensors", network, {})
    loaded = dlc_reg.load_model(tmp_path / "weights.safetensors")
    assert type(loaded) is ByRadius and loaded.arguments == {"width": 3}
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_network_in_the_package_is_one_module(tmp_path):
    """In a copy of the package: found without a line elsewhere, trained by tools/train.py from a recipe."""
    shutil.copytree(Path(PACKAGE) / "dlc_reg", tmp_path / "dlc_reg", copy_function=os.symlink)
    written = (ROOT / "tests" / "learning.py").read_text(encoding="utf-8")
    heads = written[: written.index("POINTER")], written[written.index("class Tiny") : written.index("def tiny")]
    decorated = '\nfrom dlc_reg.registration.learned.frame import architecture\n\n\n@architecture("by-radius")\n'
    (tmp_path / "dlc_reg" / "registration" / "learned" / "by_radius.py").write_text(decorated.join(heads))
    (tmp_path / "by-radius.toml").write_text(
        'architecture = "by-radius"\ndlc = "energy"\n[data]\nprotocol = "full-0-45"\npoints = 48\nsymmetric = true\n'
        "[optimizer]\nsteps = 2\nbatch = 2\n[validation]\nevery = 2\npairs = 2\n"
    )
    shapes = blocks(6, 64)
    columns = {"category": shapes.category, "name": shapes.name, "split": shapes.split}
    np.savez(tmp_path / "blocks.npz", points=shapes.points, **columns)
    arguments = ["by-radius.toml", "--data", "blocks.npz", "--out", "run", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "weights.safetensors").is_file()


# --- a data set: one script, its row, its test -----------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "datasets").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_data_set_has_a_row_and_a_test(path):
    readme = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    assert f"| `{path.name}` |" in readme
    texts = [test.read_text(encoding="utf-8") for test in (ROOT / "tests").glob("test_*.py")]
    assert any(re.search(rf"\b(import|from) {path.stem}\b|\b{path.name}\b", text) for text in texts)
