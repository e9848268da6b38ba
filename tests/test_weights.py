"""Weights in files: a round trip, and files that are damaged or made to harm."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.registration.learned import ARCHITECTURES, weights
from dlc_reg.registration.learned.weights import load_model, save_model, shipped_models

POINTER = {"widths": (8, 8), "out": 8, "neighbours": 5, "heads": 2, "hidden": 8}
SMALL = {
    "pointnetlk": {"widths": [8, 16], "pool": "mean"},
    "dcp": {**POINTER, "passes": 2},
    "prnet": {**POINTER, "keypoints": 12, "temperature_widths": (8,)},
    "rpmnet": {
        "widths": (8,),
        "head": (8,),
        "out": 8,
        "neighbours": 6,
        "radius": 0.7,
        "parameter_widths": (8,),
        "parameter_head": (),
    },
    "softicp": {"width": 8, "out": 8, "heads": 2, "blocks": 1, "anchors": 8, "hypotheses": 0},
    "ranked": {"width": 8, "turns": 60, "refined": 8},
}


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "a.safetensors", ARCHITECTURES["pointnetlk"](**SMALL["pointnetlk"]), {"seed": 3})
    return tmp_path / "a.safetensors"


def rewritten(path: Path, tensors=None, **changes) -> Path:
    """The file with other tensors or another description."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["dlc_reg"])
    text = json.dumps({**about, **changes})
    save_file(load_file(path) if tensors is None else tensors, path, metadata={"dlc_reg": text})
    return path


# --- what is saved comes back ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_comes_back_as_it_was(name, tmp_path):
    torch.manual_seed(1)
    network = ARCHITECTURES[name](**SMALL[name]).eval()
    card = {"recipe": {"steps": 10}, "figures": [1.5, None], "text": "é"}
    save_model(tmp_path / "w.safetensors", network, card)
    state = torch.get_rng_state()
    loaded = load_model(str(tmp_path / "w.safetensors"))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(network) and not loaded.training and loaded.card == card
    assert loaded.arguments == network.arguments
    source, target = torch.rand(2, 2, 20, 3).unbind()
    assert torch.equal(loaded(source, target).omega, network(source, target).omega)


def test_arguments_are_kept_with_their_defaults_and_through_a_copy():
    network = ARCHITECTURES["prnet"](**SMALL["prnet"])
    assert network.arguments["keypoints"] == 12 and network.arguments["passes"] == 3
    assert network.arguments["widths"] == [8, 8] and "self" not in network.arguments
    assert copy.deepcopy(network).arguments == network.arguments


def test_the_same_network_gives_the_same_bytes(tmp_path):
    network, sums = ARCHITECTURES["dcp"](**SMALL["dcp"]), set()
    for number in range(4):
        save_model(tmp_path / f"{number}.safetensors", network, {"b": 1, "a": 2})
        sums.add(hashlib.sha256((tmp_path / f"{number}.safetensors").read_bytes()).hexdigest())
    assert len(sums) == 1


def test_double_precision_is_stored_as_single_and_what_json_lacks_as_null(tmp_path):
    network = ARCHITECTURES["pointnetlk"](**SMALL["pointnetlk"]).double()
    save_model(tmp_path / "new" / "w.safetensors", network, {"loss": float("nan"), "x": (1.0, float("inf"))})
    loaded = load_model(tmp_path / "new" / "w.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.card == {"loss": None, "x": [1.0, None]}


def test_a_card_that_is_no_json_and_a_network_of_no_architecture_are_refused(tmp_path, saved):
    before = saved.read_bytes()
    for network, card in ((load_model(saved), {"a": object()}), (torch.nn.Linear(2, 2), {})):
        with pytest.raises(InputError):
            save_model(saved, network, card)
    assert saved.read_bytes() == before and list(tmp_path.iterdir()) == [saved]


def test_safetensors_is_imported_when_it_is_needed():
    where = Path(dlc_reg.__file__).parent.parent
    code = "import sys, dlc_reg.registration.learned.weights; sys.exit('safetensors' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=where, check=True, timeout=120)


# --- names -----------------------------------------------------------------------------------------------------------
def test_shipped_weights_go_by_their_names(saved, monkeypatch, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "good.safetensors").write_bytes(saved.read_bytes())
    (folder / "notes.md").write_text("no weights")
    monkeypatch.setattr(weights, "_FOLDER", folder)
    assert shipped_models() == ["good"] and load_model("good").card == {"seed": 3}
    with pytest.raises(InputError, match="good"):
        load_model("best")


@pytest.mark.parametrize("name", ["nothing", "no/where.safetensors", "."])
def test_unknown_names_say_what_there_is(name, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_FOLDER", tmp_path / "none")
    with pytest.raises(InputError, match=r"shipped \(none\)"):
        load_model(name)


# --- damage and harm -------------------------------------------------------------------------------------------------
def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for length in [*range(0, 64, 7), *range(64, len(whole), 97), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_model(saved)
    saved.write_bytes(whole + b"more")
    with pytest.raises(InputError):
        load_model(saved)


def test_flipped_bytes_are_refused_or_change_weights_only(saved):
    whole = saved.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for place in range(0, 8 + header, 5):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            load_model(saved)


@pytest.mark.parametrize("length", [5 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_too_much_is_not_read(saved, length):
    saved.write_bytes(struct.pack("<Q", length) + saved.read_bytes()[8:])
    with pytest.raises(InputError, match="header"):
        load_model(saved)


def test_a_pickle_is_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    torch.save(Harm(), tmp_path / "a.safetensors")
    with pytest.raises(InputError):
        load_model(tmp_path / "a.safetensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "nonesuch"}, "dcp, pointnetlk"),
        ({"architecture": ["dcp"]}, "dcp, pointnetlk"),
        ({"architecture": "__class__"}, "dcp, pointnetlk"),
        ({"architecture": "dcp", "arguments": {}}, "larger than the weights"),
        ({"arguments": {"widths": [8, 32], "pool": "mean"}}, "larger than the weights"),
        ({"arguments": {"widths": [8, 15], "pool": "mean"}}, r"last\.bias"),
        ({"arguments": {"widths": [8] * 33}}, "widths"),
        ({"arguments": {"widths": [1 << 17, 16]}}, "widths"),
        ({"arguments": {"widths": [1 << 16, 1 << 16, 16]}}, "larger than the weights"),
        ({"arguments": {"widths": [8.0, 16]}}, "widths"),
        ({"arguments": {"widths": []}}, "widths"),
        ({"arguments": {"widths": [0, 16]}}, "widths"),
        ({"arguments": {"widths": "8"}}, "widths"),
        ({"arguments": {"pool": "min"}}, "pool"),
        ({"arguments": {"self": 1}}, "widths, pool"),
        ({"arguments": {"__class__": 1}}, "widths, pool"),
        ({"arguments": [8, 16]}, "arguments"),
        ({"card": "text"}, "card"),
        ({"more": 1}, "description"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved, change, message):
    with pytest.raises(InputError, match=message):
        load_model(rewritten(saved, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0}, {"heads": 3}, {"passes": -1}, {"passes": 0}, {"neighbours": 0}, {"neighbours": 10**30},
        {"blocks": 1 << 16}, {"out": True},
    ],
)  # fmt: skip
def test_arguments_that_no_constructor_can_use_are_refused_before_memory_is_taken(tmp_path, change):
    network = ARCHITECTURES["dcp"](**SMALL["dcp"])
    save_model(tmp_path / "w.safetensors", network, {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        load_model(rewritten(tmp_path / "w.safetensors", arguments={**network.arguments, **change}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("text", ["", "{", '{"architecture": NaN}', "[" * 100_000, "null", '"a"', "1" * 10_000])
def test_what_is_not_strict_json_is_refused(saved, text):
    save_file(load_file(saved), saved, metadata={"dlc_reg": text})
    with pytest.raises(InputError):
        load_model(saved)


def test_other_tensors_are_refused(saved):
    tensors = load_file(saved)
    name = next(iter(tensors))
    matrix = next(k for k, v in tensors.items() if v.ndim == 2)
    without = {k: v for k, v in tensors.items() if k != name}
    for given, message in (
        (without, "larger than the weights"),
        ({**tensors, "more": torch.zeros(3)}, "more"),
        ({**tensors, name: tensors[name].flatten()[:1]}, "larger than the weights"),
        ({**tensors, matrix: tensors[matrix].T.contiguous()}, matrix),
        ({**tensors, name: tensors[name].half()}, "F16"),
        ({**tensors, name: tensors[name] * float("nan")}, "NaN"),
        ({**tensors, name: tensors[name] + float("inf")}, "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(rewritten(saved, given))
    save_file(tensors, saved)
    with pytest.raises(InputError, match="no description"):
        load_model(saved)
