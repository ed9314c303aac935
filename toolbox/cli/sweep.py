"""`rcnn sweep`: the variants of a base config, trained one by one, and their table."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolbox.errors import ToolboxError

if TYPE_CHECKING:
    from toolbox.engine.sweep import Outcome, Run
    from toolbox.sweep_call import SweepCall


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep, e.g. configs/paper/table_2c.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides of all variants, e.g. train.device=cpu."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of the sweep; by default runs/ and the file's name.", show_default=False),
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="The form that trains in minutes, on synthetic images.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="VARIANT", help="Train this variant; may be repeated.", show_default=False),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Instead of the file's, e.g. 0,1,2.", show_default=False)
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Train nothing; the table of what is there.")] = False,
) -> None:
    """Train the variants of a base config and put their results into one table.

    All configs are checked before anything trains. Each variant with each seed is an ordinary run, in
    DIR/VARIANT/seed-N, and DIR gets table.md and table.json. The same command goes on with a sweep that was stopped,
    and only prints the table of one that is finished. Several of it side by side share the runs. --table needs no
    overrides: the folder knows with which the sweep was trained.
    """
    from toolbox.sweep_call import NAME, SweepCall
    from toolbox.sweep_file import precheck_sweep, read_sweep

    folder = run or Path("runs") / (f"{file.stem}-small" if small else file.stem)
    call = SweepCall(tuple(overrides or ()), _seeds(seeds), small)
    if table:
        call = _as_trained(call, folder)
    small = call.small
    precheck_sweep(read_sweep(file, call.overrides, small=small))
    from toolbox.engine.sweep import check_runs, load_sweep, runs_of
    from toolbox.engine.sweep_markdown import markdown
    from toolbox.engine.sweep_table import read_table
    from toolbox.weights import replacing

    checked = load_sweep(file, call.overrides, small=small)
    outcome = None
    if not table:
        runs = runs_of(checked, folder, only=only or (), seeds=call.seeds)
        _check_folders(call, folder, runs_of(checked, folder, seeds=call.seeds))  # as the table is of all variants
        waiting = any(not run.finished for run in runs)
        if waiting:
            check_runs(runs, checked.text)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolboxError(f"{folder}: no folder for the runs: {error.strerror}; name one with --run") from None
        with replacing(folder / NAME) as path:
            path.write_text(call.to_json(), encoding="utf-8")
        outcome = _train(runs) if waiting else None
    result = read_table(checked, folder, seeds=call.seeds)
    if folder.is_dir():
        for name, text in (("table.md", markdown(result)), ("table.json", result.to_json())):
            with replacing(folder / name) as path:
                path.write_text(text, encoding="utf-8")
    typer.echo(markdown(result), nl=False)
    if outcome is not None:
        _report(outcome)


def _check_folders(given: SweepCall, folder: Path, runs: list[Run]) -> None:
    """Refuse a sweep whose runs were started otherwise; where the overrides do it, say which they were."""
    from toolbox.engine.sweep import check_folders
    from toolbox.errors import ConfigError, Problem
    from toolbox.sweep_call import SweepCall

    try:
        check_folders(runs)
    except ConfigError as error:
        kept = SweepCall.read(folder)
        if kept is None or (kept.overrides, kept.small) == (given.overrides, given.small):
            raise
        said = shlex.join([*(["--small"] if kept.small else []), *kept.overrides])
        started = f"the sweep was started with {said or 'no overrides'}; repeat that to go on"
        raise ConfigError([*error.problems, Problem(str(folder), "", started)]) from error


def _as_trained(given: SweepCall, folder: Path) -> SweepCall:
    """What the sweep in a folder was trained with, which is said where it is not what was given."""
    from toolbox.sweep_call import SweepCall

    kept = SweepCall.read(folder)
    if kept is None:
        return given
    if given.overrides != kept.overrides:
        trained = f"{folder}: trained with {' '.join(kept.overrides) or 'no overrides'}, of which this is the table"
        left = f"; {' '.join(given.overrides)} is left aside" if given.overrides else ""
        typer.echo(f"{'warning: ' if left else ''}{trained}{left}", err=True)
    # An earlier version did not write down whether it was small.
    return replace(kept, seeds=kept.seeds if given.seeds is None else given.seeds, small=kept.small or given.small)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise ToolboxError(f"--seeds is different whole numbers with commas between, e.g. 0,1,2, not '{text}'")
    return tuple(map(int, parts))


def _train(runs: list[Run]) -> Outcome:
    from toolbox.cli.progress_line import progress_line
    from toolbox.engine.sweep import train_runs

    with progress_line() as progress:

        def announce(number: int, run: Run) -> None:
            if progress.shown:  # elsewhere the log says so
                progress.clear()
                typer.echo(f"run {number + 1} of {len(runs)}: {run}")

        return train_runs(runs, on_run=announce, on_progress=progress)


def _report(outcome: Outcome) -> None:
    """What the table does not say; and the exit status that belongs to it."""
    for run in outcome.locked:
        typer.echo(
            f"{run}: another process is at it; the same command prints the whole table once it is done", err=True
        )
    for run, why in outcome.diverged:
        typer.echo(f"{run}: {why}", err=True)
    if outcome.stopped:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(130)
    if outcome.diverged:
        raise typer.Exit(1)
