"""The table of a sweep as Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from toolbox.engine.sweep_table import Order, Row, Spread, SweepTable
from toolbox.errors import counted

_NOTHING = "–"


def markdown(table: SweepTable) -> str:
    """Title, rows, and what the paper's order is worth here."""
    parts = [f"# {table.title}", _head(table), _rows(table)]
    notes = [f"- {row.name}: not trained: {row.only_paper}" for row in table.rows if row.only_paper is not None]
    notes += [f"- {row.name}: the same config as {row.same_as}, so the same runs" for row in table.rows if row.same_as]
    if notes:
        parts.append("\n".join(notes))
    parts += [_order(order, len(table.seeds)) for order in map(table.order, table.published) if order.adjacent]
    return "\n\n".join(parts) + "\n"


def _head(table: SweepTable) -> str:
    trained = [row for row in table.rows if row.only_paper is None and row.same_as is None]
    done, wanted = sum(len(row.runs) for row in trained), len(trained) * len(table.seeds)
    seeds = f"{counted(len(table.seeds), 'seed')} ({', '.join(map(str, table.seeds))})"
    kind = "small form: another network on other data than the paper's; " if table.small else ""
    return (
        f"{kind}{seeds}, {done} of {counted(wanted, 'run')} done. In percent: mean (least to greatest of the seeds); "
        f"Δ is the difference to {table.reference}, seed by "
        "seed, taken before rounding."
    )


def _rows(table: SweepTable) -> str:
    head, seeds = ["variant"], len(table.seeds)
    for metric in table.metrics:
        head += [metric, f"Δ {metric}"]
        head += [f"{metric} in the paper", "Δ"] if metric in table.published else []
    cells = [[*head, "steps", "time a run"]]
    for row in table.rows:
        line = [row.name]
        for metric in table.metrics:
            line += [_spread(row.ours(metric), seeds), _spread(table.difference(row, metric), seeds, signed=True)]
            if metric in table.published:
                line += [_number(row.paper.get(metric)), _number(table.paper_difference(row, metric), signed=True)]
        cells.append([*line, _NOTHING if row.steps is None else str(row.steps), _time(row)])
    return _table(cells)


def _order(order: Order, seeds: int) -> str:
    cells = [["lower in the paper", "higher", "paper's Δ", "ours, seed by seed", "the order"]]
    cells += [
        [
            pair.lower,
            pair.higher,
            _number(pair.paper, signed=True),
            _spread(pair.ours, seeds, signed=True),
            pair.verdict,
        ]
        for pair in order.adjacent
    ]
    verdicts = Counter(pair.verdict for pair in order.adjacent)
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    pairs = order.concordant + order.discordant
    lines = [f"## Order by {order.metric}", "", _table(cells), "", f"Neighbours: {said}."]
    if order.tau is not None:
        means = f"{order.concordant} of {counted(pairs, 'pair')} as in the paper (Kendall's tau {order.tau:+.2f})"
        lines[-1] += f" All, by their means: {means}."
    lines[-1] += (
        " With one seed, nothing is known of the spread."
        if seeds == 1
        else " *Agrees*: every seed has the paper's sign; *within the spread*: the seeds differ in it."
    )
    return "\n".join(lines)


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return _NOTHING
    value = round(value, 1) + 0.0  # no minus zero
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def _spread(spread: Spread | None, seeds: int, *, signed: bool = False) -> str:
    """Mean, least and greatest; and how many of the seeds, where that is not all."""
    if spread is None:
        return _NOTHING
    mean, low, high = (_number(value, signed=signed) for value in (spread.mean, spread.low, spread.high))
    inside = [f"{low} to {high}"] if spread.count > 1 else []
    inside += [f"{spread.count} of {seeds}"] if spread.count < seeds else []
    return f"{mean} ({'; '.join(inside)})" if inside else mean


def _time(row: Row) -> str:
    if row.seconds is None:
        return _NOTHING
    return f"{row.seconds:.0f} s" if row.seconds < 600 else f"{row.seconds / 3600:.1f} h"


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("-" * width for width in widths), *lines[1:]])
