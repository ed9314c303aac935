"""The last lines of `rcnn check`: what a few training steps say of the whole run."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from toolbox.engine.forecast import Forecast, forecast
from toolbox.engine.nonfinite import TrainingDiverged
from toolbox.engine.progress import about
from toolbox.errors import ToolboxError, counted
from toolbox.schema import Config


def print_forecast(config: Config, run: Path, limit: float) -> None:
    """Say that steps are measured, measure them, and print what follows.

    Args:
        config: checked.
        run: where the run would be written.
        limit: seconds after which no further step is begun.
    """
    if limit <= 0:
        raise ToolboxError(f"--limit is more than 0 seconds, got {limit:g}; --no-step measures nothing")
    typer.echo(f"measuring a few training steps (up to {limit:g} s and a step; --no-step leaves this out)")
    log = logging.getLogger("toolbox")
    level = log.level
    log.setLevel(logging.ERROR)  # what a run warns of at its start has been said
    try:
        found = forecast(config, run, limit=limit)
    except (ToolboxError, TrainingDiverged) as error:
        typer.echo(f"  not measured: {error}")
        return
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        typer.echo(f"  out of memory; lower train.micro_batch, or train.activation_checkpointing=true: {error}")
        return
    finally:
        log.setLevel(level)
    typer.echo("\n".join(lines_of(found)))


def lines_of(found: Forecast) -> list[str]:
    """Time, memory and disk, a line each."""
    alone = ", the first one, with what starts up" if found.passes == 1 else ""
    lines = [
        f"  step: {found.step:.3g} s, {found.images_per_second:.3g} images/s, {found.loader_share:.0%} of it waiting "
        f"for the loader (from {counted(found.passes, 'backward pass', 'backward passes')}{alone})"
    ]
    parts = f"{counted(found.steps, 'step')} {about(found.steps * found.step)}"
    if found.evaluations:
        each = counted(found.evaluations, "evaluation")
        parts += f", {each} {about(found.evaluations * found.evaluation)} (of an untrained model)"
    lines.append(f"  the run: {about(found.total)}: {parts}")
    if found.memory is not None:
        left = "" if found.available is None else f", {_size(found.available)} more are there"
        most = f"{_size(found.memory)} at the most on these batches; larger images take more"
        lines.append(f"  memory: {most}{left}")
    enough = "" if found.checkpoint * 2 < found.free else ": NOT ENOUGH, as a new one is written beside the old one"
    lines.append(f"  disk: {_size(found.checkpoint)} for checkpoints and models, {_size(found.free)} are free{enough}")
    return lines


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
