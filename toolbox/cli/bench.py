"""`rcnn bench`: the scripts of benchmarks/, which a source checkout has."""

from __future__ import annotations

import subprocess
import sys
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
_LISTED = ", ".join(f"{name} ({what}; {time})" for name, (what, time) in NAMES.items())


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=_LISTED)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="…", help="Passed on, options too; after --, --help too.")
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
    typer.echo(f"{NAMES[name][0]}: about {NAMES[name][1]}", err=True)
    raise typer.Exit(subprocess.run([sys.executable, str(script), *(arguments or ())], check=False).returncode)
