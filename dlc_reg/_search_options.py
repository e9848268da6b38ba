"""The options of the commands that register: those of `dlc_reg.register` under the same names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from dlc_reg.api import METHODS
from dlc_reg.errors import InputError
from dlc_reg.registration.constraint import DOF

DOF_HELP = f"What may move: {', '.join(DOF)}. yaw: turns about gravity, or z."


DASHED = [method.replace("_", "-") for method in METHODS]
METHOD_HELP = f"{', '.join(DASHED[:3])}: search from any pose; {', '.join(DASHED[3:])}: refine from the given start."


workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Processes side by side. Default: one pair after another."
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them; `arguments` makes what `register` takes of their values."""
    return _added(command, set())


def search_options_of_many(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds those that make sense for every pair of many clouds in one frame."""
    of_one = {f"--{side}-{what}" for side in ("source", "target") for what in ("viewpoint", "gravity")}
    return _added(command, {"--with-scaling", "--dof", *of_one})


def _added(command: Callable[..., Any], left_out: set[str]) -> Callable[..., Any]:
    point: dict[str, Any] = {"nargs": 3, "type": float, "metavar": "X Y Z"}
    options: dict[str, dict[str, Any]] = {
        "--voxel-size": {"type": float, "help": "Length of the finest grid. Default: from the data."},
        "--max-correspondence-distance": {"type": float, "help": "Farthest match. Default: from the voxel size."},
        "--method": {"default": "auto", **_named(DASHED), "help": METHOD_HELP},
        "--with-scaling": {"is_flag": True, "help": "Estimate a scale as well."},
        "--dof": {"default": "rigid", **_named(DOF), "help": DOF_HELP},
        "--source-viewpoint": {"help": "Where the sensor stood, in the source's frame.", **point},
        "--target-viewpoint": {"help": "Where the sensor stood, in the target's frame.", **point},
        "--sensor-frame": {"is_flag": True, "help": "Both sensors stood at their clouds' origins."},
        "--source-gravity": {"help": "Which way is down, in the source's frame.", **point},
        "--target-gravity": {"help": "Which way is down, in the target's frame.", **point},
        "--budget": {"type": float, "metavar": "SECONDS", "help": "Skip what takes longer, and say what was skipped."},
        "--num-threads": {"type": click.IntRange(min=1), "help": "Default: all cores. The result is the same."},
        "--seed": {"type": int, "default": 0, "show_default": True},
    }
    added = [click.option(name, **how) for name, how in options.items() if name not in left_out]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(added), command)


def _named(names: Sequence[str]) -> dict[str, Any]:
    """One of some names that `register` itself checks; a shell completes them."""
    return {"show_default": True, "metavar": "NAME", "shell_complete": lambda *_: list(names)}


def arguments(search: dict[str, Any]) -> dict[str, Any]:
    """Those of `register` for the values of `search_options`."""
    options = dict(search)
    if options.pop("sensor_frame"):
        for name in ("source_viewpoint", "target_viewpoint"):
            if options[name] is not None:
                raise click.UsageError(f"--sensor-frame already says what --{name.replace('_', '-')} says")
            options[name] = (0.0, 0.0, 0.0)
    options["method"] = options["method"].replace("-", "_")
    return options


def in_options(error: InputError, options: Iterable[str], positional: Iterable[str]) -> InputError:
    """The same error in the command line's words, not in Python's."""
    names = {name: f"--{name.replace('_', '-')}" for name in options} | {name: name.upper() for name in positional}
    expected = error.expected.replace("allow_outside=True", "--allow-outside")
    return InputError(names.get(error.argument, error.argument), error.given, expected)
