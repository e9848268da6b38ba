"""Compares the drop-in's two modules with the installed Open3D's, name by name, and prints the table of docs/open3d.md.

    python tools/open3d_parity.py [--write]

For every public name it compares arguments, their order and defaults, and the members of classes. A difference that no
note here explains is a gap: it is listed, and the exit code is 1. `--write` puts the table into docs/open3d.md.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open3d

from dlc_reg.pipelines import registration as legacy
from dlc_reg.t.pipelines import registration as tensor

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "open3d.md"
BEGIN, END = "<!-- python tools/open3d_parity.py --write -->", "<!-- end of its output -->"

NEW = "0.20 only"
REEXPORTED = "Open3D's own object, re-exported (needs the extra `open3d`)"
CLOUDS = "clouds of any kind, `num_threads=`"
# what is better (how), or differs and why; names without a note must be the same
NOTES: dict[str, dict[str, str]] = {
    "pipelines": {
        "registration_icp": f"better: {CLOUDS}; status, covariance and free motions in the result; faster",
        "registration_colored_icp": f"better: {CLOUDS}; no correspondences: init, and `status` says so",
        "registration_generalized_icp": f"better: {CLOUDS}; faster",
        "registration_symmetric_icp": f"better: {CLOUDS}. {NEW}",
        "TransformationEstimationSymmetric": f"same. {NEW}",
        "TransformationEstimationForColoredICP": "same; a `lambda_geometric` outside [0, 1] raises",
        "evaluate_registration": "better: a target that is not finite raises",
        "get_information_matrix_from_point_clouds": "better: a target that is not finite raises",
        "RegistrationResult": "better: pickles, and carries the evidence",
        "registration_ransac_based_on_correspondence": "better: `seed=` makes it repeatable; faster; "
        "impossible arguments raise instead of giving an empty result",
        "registration_ransac_based_on_feature_matching": "better, as `registration_ransac_based_on_correspondence`",
        "CorrespondenceChecker": "better: can be subclassed, with a `Check` of your own",
        "CorrespondenceCheckerBasedOnSourceRotation": f"same. {NEW}",
        "registration_fgr_based_on_correspondence": "better: `seed=` makes it repeatable; faster",
        "registration_fgr_based_on_feature_matching": "better, as `registration_fgr_based_on_correspondence`",
        "compute_fpfh_feature": "better: without Open3D a radius, or (radius, number), says who the neighbours are",
        "NormalDistributionsTransformOption": f"same. {NEW}",
        "registration_ndt": f"same, but slower: it is NumPy. {NEW}",
    },
    "t.pipelines": {
        "icp": "better: torch tensors, arrays, mappings; time hardly grows with the distance; generalized and learned "
        "estimation too; no correspondences: init instead of identity",
        "multi_scale_icp": "better, as `icp`",
        "registration_symmetric_icp": f"better, as `icp`. {NEW}",
        "TransformationEstimationSymmetric": f"same. {NEW}",
        "evaluate_registration": "better: no correspondences: the pose given instead of identity",
        "TransformationEstimationForColoredICP": "better: float64 clouds converge as float32 ones do; the attribute "
        "`color_gradients` is not read, gradients are estimated at each scale",
        "TransformationEstimationForDopplerICP": "better: any combination of kernels; attributes by keyword",
        "RegistrationResult": "better: pickles; `details` carries the evidence",
    },
}
SIX = "the core's kernels are the six that both of Open3D's modules have"
NOT_OFFERED = {"robust_kernel.GeneralizedLoss": SIX, "robust_kernel.RobustKernelMethod.GeneralizedLoss": SIX}
MODULES = {
    "pipelines": (open3d.pipelines.registration, legacy),
    "t.pipelines": (open3d.t.pipelines.registration, tensor),
}


def public(module: Any) -> list[str]:
    """Names, but for those of type variables that pybind11 leaves there."""
    return [n for n in dir(module) if not n.startswith("_") and not isinstance(getattr(module, n), TypeVar)]


def rows(which: str) -> Iterator[tuple[str, str]]:
    """(name, what the table says of it)."""
    theirs, ours = MODULES[which]
    for name in public(theirs):
        yield from ((full, f"not offered: {why}") for full, why in NOT_OFFERED.items() if full.startswith(f"{name}."))
        if name in NOTES[which]:
            yield name, NOTES[which][name]
        elif getattr(ours, name, None) is getattr(theirs, name):
            yield name, REEXPORTED
        else:
            yield name, "same"


def gaps(which: str) -> Iterator[str]:
    """What is missing or differs without a note, one line each; and notes that are of no use any more."""
    theirs, ours = MODULES[which]
    names = public(theirs)
    for name in names:
        if not hasattr(ours, name):
            yield f"{which}: {name} is missing"
            continue
        for difference in differences(getattr(theirs, name), getattr(ours, name)):
            if not any(difference == f"{full.removeprefix(name + '.')} is missing" for full in NOT_OFFERED):
                yield f"{which}: {name}: {difference}"
    yield from (f"{which}: the note on {name} is of no name of Open3D's" for name in set(NOTES[which]) - set(names))


def differences(theirs: Any, ours: Any) -> Iterator[str]:
    if theirs is ours:
        return
    if inspect.ismodule(theirs):
        for name in public(theirs):
            if hasattr(ours, name):
                yield from (f"{name}.{found}" for found in differences(getattr(theirs, name), getattr(ours, name)))
            else:
                yield f"{name} is missing"
        return
    if not callable(theirs):
        return
    if inspect.isclass(theirs):
        members = {m for m in dir(theirs) if not m.startswith("_")}
        known = {*dir(ours), *(n for kind in ours.__mro__ for n in getattr(kind, "__annotations__", {}))}
        if ours.__name__ == "RegistrationResult":
            known |= vars(ours()).keys()
        yield from (f"{member} is missing" for member in sorted(members - known))
        theirs, ours = theirs.__init__, ours.__init__
    wanted, given = arguments(theirs), inspect.signature(ours).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return
    positional = [p for p in given if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    if wanted is None:
        return
    names = [p.name for p in positional][: len(wanted)]
    if names != list(wanted):
        yield f"takes ({', '.join(names)}) for ({', '.join(wanted)})"
        return
    for parameter in positional:
        text = wanted.get(parameter.name)
        if text is not None and parameter.default is not parameter.empty and not alike(text, parameter.default):
            yield f"has {parameter.default!r} by default for {parameter.name}, and Open3D {text}"
        if text is not None and parameter.default is parameter.empty:
            yield f"has no default for {parameter.name}, and Open3D {text}"


def arguments(function: Any) -> dict[str, str | None] | None:
    """Names and the text of defaults (None: there is none, or the text leaves it out), from pybind11's signature.

    Of several overloads the one with the most names; None where no overload names its arguments.
    """
    best: dict[str, str | None] = {}
    for overload in re.split(r"\n(?=\d+\. )", inspect.getdoc(function) or ""):
        head = overload.split(") ->")[0]
        starts = list(re.finditer(r"(?<=[(,]) ?(\w+): (?=open3d|typing|collections|bool|str)", head))
        ends = [*(following.start() for following in starts[1:]), len(head)][: len(starts)]
        found: dict[str, str | None] = {}
        for start, end in zip(starts, ends, strict=True):
            _, equals, default = head[start.end() : end].rstrip(", ").partition(" = ")
            found[start[1]] = default if equals else None
        found.pop("self", None)
        if not any(name.startswith("arg") for name in found) and len(found) > len(best):
            best = found
    return best or None


def alike(text: str, default: Any) -> bool:
    """Whether a default's text in Open3D's documentation stands for ours."""
    squeezed = re.sub(r"\s", "", text)
    if isinstance(default, float):
        return abs(float(squeezed) - default) <= 1e-6 * abs(default)
    if isinstance(default, enum.Enum):
        return squeezed.endswith(f".{default}")
    if isinstance(default, tuple):
        return squeezed == repr(list(default))
    if isinstance(default, np.ndarray):  # the entries are written out, then what kind of tensor it is
        return [float(x) for x in re.findall(r"\d+", text.split("Tensor")[0])] == default.flatten().tolist()
    return squeezed == re.sub(r"\s", "", repr(default))


def table() -> str:
    parts = []
    for which, (theirs, ours) in MODULES.items():
        parts.append(f"`open3d.{which}.registration` and `dlc_reg.{which}.registration`:\n")
        parts.append("| name | here |\n|---|---|")
        parts += [f"| `{name}` | {said} |" for name, said in rows(which)]
        more = [f"`{name}`" for name in sorted(set(ours.__all__) - set(public(theirs)))]
        parts.append(f"\nOnly here: {', '.join(more)}.\n" if more else "")
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/open3d.md")
    options = parser.parse_args()
    if options.write:
        text = DOCUMENT.read_text()
        before, rest = text.split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}")
    else:
        print(table())
    found = [gap for which in MODULES for gap in gaps(which)]
    print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
