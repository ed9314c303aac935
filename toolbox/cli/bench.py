"""`rcnn bench`: the scripts of benchmarks/, which a source checkout has."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from toolbox.errors import ToolboxError, did_you_mean

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
# What each measures, and about how long it takes on two CPU cores with nothing else to do.
NAMES = {
    "data": ("the training loader beside torchvision's", "a minute or two"),
    "ops": ("RoI operations beside torchvision's", "five minutes"),
    "infer": ("a whole model beside torchvision's", "five minutes"),
    "train_step": ("a training step beside torchvision's and Detectron2's", "ten minutes"),
    "masks": ("masks to run lengths beside the usual route", "half a minute"),
    "startup": ("how long commands take to say their first word", "two minutes"),
}
_OF_A_CONFIG = ("data",)
_LISTED = ", ".join(f"{name} ({what}; {time})" for name, (what, time) in NAMES.items())


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=_LISTED)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="…", help="Passed on, options too; NAME --help shows what it takes.")
    ] = None,
) -> None:
    """Measure speed, ours beside the peers', e.g. rcnn bench ops --threads 1."""
    if name not in NAMES:
        raise ToolboxError(f"no benchmark '{name}'{did_you_mean(name, NAMES)} (benchmarks: {', '.join(NAMES)})")
    script = FOLDER / f"{name}.py"
    if not script.is_file():
        raise ToolboxError(
            f"{script}: not there; benchmarks are part of the sources: clone the repository, and there pip install -e ."
        )
    passed_on = arguments or []
    if not {"-h", "--help"} & {*passed_on}:
        if name in _OF_A_CONFIG:
            _precheck(passed_on)
        typer.echo(f"{NAMES[name][0]}: about {NAMES[name][1]}", err=True)
    command = [sys.executable, "-m", "toolbox.cli.bench", str(script), *passed_on]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _precheck(arguments: Sequence[str]) -> None:
    """Refuse a config before the script imports torch and its peers."""
    config = next(iter(arguments), "-")
    if not config.startswith("-"):
        from toolbox.precheck import precheck

        precheck(config, [argument for argument in arguments[1:] if re.match(r"[\w.]+=", argument)])


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a benchmark as Python would; wrong input is said as by every other command."""
    sys.argv[:] = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except ToolboxError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    run_script(sys.argv[1], sys.argv[2:])
