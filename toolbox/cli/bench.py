"""`rcnn bench`: the scripts of benchmarks/, which a source checkout has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolbox.errors import ToolboxError, did_you_mean

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = {
    "ops": "RoI operations beside torchvision's",
    "infer": "a whole model beside torchvision's",
    "masks": "masks to run lengths beside the usual route",
    "startup": "how long commands take to say their first word",
}


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=", ".join(f"{n} ({t})" for n, t in NAMES.items()))],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="…", help="Passed on; after --, options too.")
    ] = None,
) -> None:
    """Measure speed, ours beside the peers', e.g. rcnn bench ops -- --threads 1."""
    if name not in NAMES:
        raise ToolboxError(f"no benchmark '{name}'{did_you_mean(name, NAMES)} (benchmarks: {', '.join(NAMES)})")
    script = FOLDER / f"{name}.py"
    if not script.is_file():
        raise ToolboxError(
            f"{script}: not there; benchmarks are part of the sources: clone the repository, and there pip install -e ."
        )
    raise typer.Exit(subprocess.run([sys.executable, str(script), *(arguments or ())], check=False).returncode)
