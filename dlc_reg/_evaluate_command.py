"""`dlc-reg evaluate`: the field's table for methods and weights, on pairs that a protocol makes of prepared shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.evaluation import (
    BINS,
    FILES,
    METHODS,
    REFINEMENTS,
    Method,
    OneByOne,
    about_weights,
    evaluate,
    installed,
    keep_asymmetric,
    markdown,
    method,
    success_by_rotation,
)
from dlc_reg.protocols import PROTOCOLS, Shapes
from dlc_reg.registration.learned.apply import SHIPPED

FILE = click.Path(path_type=Path)
NAMES = ", ".join([*METHODS, "register", *(f"learned:WEIGHTS+{name}" for name in REFINEMENTS)])


@click.command("evaluate", short_help="Compare methods on pairs of prepared shapes.")
@click.option("--data", type=FILE, required=True, help="An npz that a script in datasets/ prepared.")
@click.option(
    "--protocol", default="rpmnet-independent", show_default=True, help=", ".join([*PROTOCOLS, "full-LO-HI."])
)
@click.option("--method", "methods", multiple=True, metavar="NAME", help=f"Several times; or all. {NAMES}.")
@click.option("--weights", multiple=True, help="A learned model: its file or its name. Several times.")
@click.option(
    "--polish/--no-polish", default=True, show_default=True, help="Show each learned model with ICP after it, too."
)
@click.option("--iterations", type=click.IntRange(min=0), help="Of learned models; default: their own number.")
@click.option("--passes", type=click.IntRange(min=1), help="Of learned models that encode the clouds anew in each.")
@click.option("--device", default="cpu", show_default=True, help="Of learned models.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--categories", type=click.Choice(["all", "seen", "unseen"]), default="all", show_default=True)
@click.option("--asymmetric", is_flag=True, help="Leave out shapes that a rotation lays on themselves.")
@click.option("--pairs", type=click.IntRange(min=1), help="Default: one a shape.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--by-rotation", is_flag=True, help="Also success against the initial rotation, on whole clouds.")
@click.option("--out", type=FILE, help="A folder for results.json and pairs.csv.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
def command(out: Path | None, overwrite: bool, quiet: bool, by_rotation: bool, **options: Any) -> None:
    """Compares methods on the same pairs in one run, beside published values.

    The table goes to stdout. Methods see the two clouds, never the true pose; learned models start from the identity.
    """
    if out is not None and not overwrite and any((out / name).exists() for name in FILES):
        raise InputError("--out", f"'{out}', which holds results", "a new folder, or --overwrite")
    progress = not quiet and sys.stderr.isatty()
    runners = choose(options)
    shapes = Shapes.load(options["data"]).select(split=options["split"], categories=options["categories"])
    given = len(shapes)
    if options["asymmetric"]:
        shapes = keep_asymmetric(shapes, progress=progress)
    click.echo(
        f"{options['protocol']}, {options['split']}, categories {options['categories']}: {len(shapes)} shapes"
        + (f" ({given - len(shapes)} symmetric ones left out)" if options["asymmetric"] else "")
        + f", seed {options['seed']}\n"
    )
    numbers = {"pairs": options["pairs"], "seed": options["seed"], "progress": progress}
    results = evaluate(shapes, options["protocol"], runners, **numbers)
    results.about.update({key: str(options[key]) for key in ("split", "categories", "asymmetric")})
    click.echo(results.text())
    if by_rotation:
        table = success_by_rotation(shapes, runners, **numbers)
        results.about["success_by_rotation"] = {
            name: {f"{low}-{high}": figures for (low, high), figures in bins.items()} for name, bins in table.items()
        }
        click.echo("\n" + rotations(table))
    if out is not None:
        written = results.save(out, overwrite=overwrite)
        click.echo(f"\nwrote {', '.join(map(str, written))}")


def choose(options: dict[str, Any]) -> list[Method]:
    """The methods that the options name; without any, what is cheap."""
    names = list(options["methods"]) or ([] if options["weights"] else ["identity", "icp"])
    if "all" in names:
        names = list(dict.fromkeys([*installed(), "register", *(n for n in names if n != "all")]))
    for weights in options["weights"]:
        names += [f"learned:{weights}"] + [f"learned:{weights}+polish"] * options["polish"]
    learned = {key: options[key] for key in ("iterations", "passes", "device")}
    return [_registering() if name == "register" else method(name, **learned) for name in names]


def rotations(table: dict[str, dict[tuple[int, int], dict[str, float]]]) -> str:
    """Success in per cent, within 5 / 10 degrees."""
    header = ["initial rotation [deg]", *(f"{low}-{high}" for low, high in BINS)]
    rows = []
    for name, bins in table.items():
        cells = [" / ".join(f"{100 * share:.0f}" for share in bins[b].values()) for b in BINS]
        rows.append([name, *cells])
    return markdown(header, rows)


def _registering() -> Method:
    """Ours as a whole, which the shipped model is a part of."""
    return OneByOne("register", _register, about_weights(SHIPPED))


def _register(source: Any, target: Any) -> Any:
    return dlc_reg.register(source, target, num_threads=1).transformation
