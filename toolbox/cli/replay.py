"""`rcnn train --replay CAPSULE`: a step that went wrong, computed again and laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from toolbox.engine.module_statistics import Statistics
    from toolbox.engine.replay import Replay

_RECENT = 3  # of the steps before, shown


def replay_step(path: Path, overrides: Sequence[str], plugins: Sequence[str]) -> None:
    """Replay a capsule and print what came of it; leaves with 1 where what was not finite is finite now."""
    from toolbox.engine.replay import replay
    from toolbox.inference.predictor import choose_device

    # A capsule says where its run ran; the replay is on the CPU unless it is told otherwise here.
    asked = [override.partition("=")[2] for override in overrides if override.startswith("train.device=")]
    device = choose_device(asked[-1], instead="train.device=cpu") if asked else "cpu"
    done = replay(path, device=str(device), overrides=overrides, plugins=plugins)
    typer.echo(report(done))
    if not done.reproduced:
        raise typer.Exit(1)


def report(done: Replay) -> str:
    """The losses then and now, every module's output, the gradients where they are at fault, and the verdict."""
    step = done.then.step
    ids = [image_id for batch in done.then.batches for image_id in batch.image_ids]
    lines = [
        f"{done.path}: step {step.step + 1}, seed {step.seed}, learning rate {step.lr:.3g}, images {ids}",
        *[f"note: {note}" for note in step.notes],
        "",
        *_losses(step.losses, done.losses),
        *[f"step {line['step']} before it: {_listed(line['losses'])}" for line in step.recent[-_RECENT:]],
        "",
        *_table("module", done.now.modules, done.now.first_module),
    ]
    if step.reason == "gradient":
        lines += ["", *_table("gradient of", done.now.gradients, done.now.first_gradient)]
    return "\n".join([*lines, "", done.verdict()])


def _losses(then: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    width = max(10, *(len(name) for name in {*then, *now}))
    lines = [f"{'loss':<{width}}{'then':>14}{'now':>14}"]
    for name in dict.fromkeys((*then, *now)):
        before, after = (f"{losses[name]:.6g}" if name in losses else "–" for losses in (then, now))
        lines.append(f"{name:<{width}}{before:>14}{after:>14}")
    return lines


def _listed(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def _table(title: str, rows: Sequence[Statistics], first: str | None) -> list[str]:
    """One line each; the first that is not finite is marked."""
    name = max([len(title), *(len(row.name) for row in rows)])
    kind = max([0, *(len(row.kind) for row in rows)])
    head = f"  {title:<{name}}  {'':<{kind}}  {'type':<9}{'min':>11}{'max':>11}{'mean':>11}{'rms':>11}  not finite"
    lines = [head.rstrip()]
    for row in rows:
        values = [row.minimum, row.maximum, row.mean, row.rms] if row.finite else []
        numbers = "".join(f"{value:>11.3g}" for value in values) or f"{'–':>11}" * 4
        share = f"{row.not_finite:>11.2%}" if row.not_finite else f"{'0':>11}"
        mark = "> " if row.name == first else "  "
        lines.append(f"{mark}{row.name:<{name}}  {row.kind:<{kind}}  {row.dtype:<9}{numbers} {share}")
    return lines
