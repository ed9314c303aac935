"""What the runs of a sweep gave, beside what the paper has: means, spreads, paired differences, and the order.

All numbers are in percent. A paired difference is taken seed by seed, between runs that saw the same images in the same
order, and is therefore far less noisy than the difference of two means.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from toolbox.engine.run_folder import RunFolder
from toolbox.engine.sweep import Run, Sweep, check_folders, runs_of
from toolbox.errors import CheckpointError
from toolbox.sweep_file import VariantText

_DIGITS = 6  # of percent, which hides how floats round and no difference that a run can have

Verdict = Literal["agrees", "disagrees", "within the spread", "not trained"]


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes:
        mean: of them.
        low, high: the least and the greatest.
        count: how many.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no values."""
        known = list(values)
        if not known:
            return None
        mean, low, high = (round(value, _DIGITS) for value in (sum(known) / len(known), min(known), max(known)))
        return cls(mean, low, high, len(known))


@dataclass(frozen=True)
class Row:
    """A variant.

    Attributes:
        name: of it.
        paper: published values by metric.
        only_paper: why it is not trained, or None.
        same_as: the variant of the same config whose runs these are, or None.
        steps: optimizer steps of a run; None if it is not trained.
        seconds: mean training time of a run, without evaluation; None if nothing is known.
        runs: seed → metric → value, of the finished runs; what was not evaluated is left out.
    """

    name: str
    paper: Mapping[str, float]
    only_paper: str | None
    same_as: str | None
    steps: int | None
    seconds: float | None
    runs: Mapping[int, Mapping[str, float]]

    def ours(self, metric: str) -> Spread | None:
        """Over the seeds."""
        return Spread.of(values[metric] for values in self.runs.values() if metric in values)

    def minus(self, other: Row, metric: str) -> Spread | None:
        """Paired differences over the seeds that both have."""
        both = [seed for seed, values in self.runs.items() if metric in values and metric in other.runs.get(seed, {})]
        return Spread.of(self.runs[seed][metric] - other.runs[seed][metric] for seed in both)


@dataclass(frozen=True)
class Pair:
    """Two variants that the paper puts in an order.

    Attributes:
        lower, higher: their names.
        paper: by how much the higher is better.
        ours: the same here, seed by seed.
    """

    lower: str
    higher: str
    paper: float
    ours: Spread | None

    @property
    def verdict(self) -> Verdict:
        """`agrees` where every seed has the paper's sign, `disagrees` where every seed has the other."""
        if self.ours is None:
            return "not trained"
        if self.ours.low > 0:
            return "agrees"
        return "disagrees" if self.ours.high < 0 else "within the spread"


@dataclass(frozen=True)
class Order:
    """Whether the variants stand in the paper's order by one metric.

    Attributes:
        metric: by which.
        adjacent: neighbours in the paper's order; variants that the paper has alike are no pair.
        concordant, discordant: over all pairs, how many of the mean differences have the paper's sign, and the other.
    """

    metric: str
    adjacent: tuple[Pair, ...]
    concordant: int
    discordant: int

    @property
    def tau(self) -> float | None:
        """Kendall's rank correlation, from 1 (the same order) to −1 (turned round)."""
        pairs = self.concordant + self.discordant
        return (self.concordant - self.discordant) / pairs if pairs else None


@dataclass(frozen=True)
class SweepTable:
    """The result of a sweep, whole or so far.

    Attributes:
        title: of the table.
        source: the sweep's file.
        small: whether it is the small form.
        seeds: of the runs.
        metrics: columns; the first decides what is said of the order first.
        reference: name of the row that others are compared with.
        rows: in the order of the file.
    """

    title: str
    source: str
    small: bool
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    reference: str
    rows: tuple[Row, ...]

    @property
    def published(self) -> tuple[str, ...]:
        """The metrics of which the paper has values."""
        return tuple(metric for metric in self.metrics if any(metric in row.paper for row in self.rows))

    def difference(self, row: Row, metric: str) -> Spread | None:
        """To the reference; None for the reference itself."""
        reference = next(other for other in self.rows if other.name == self.reference)
        return None if row is reference else row.minus(reference, metric)

    def paper_difference(self, row: Row, metric: str) -> float | None:
        """The paper's, likewise."""
        reference = next(other for other in self.rows if other.name == self.reference)
        known = row is not reference and metric in row.paper and metric in reference.paper
        return row.paper[metric] - reference.paper[metric] if known else None

    def order(self, metric: str) -> Order:
        """The variants that could be trained, by the paper's values."""
        rows = [row for row in self.rows if metric in row.paper and row.only_paper is None]
        rows.sort(key=lambda row: row.paper[metric])
        signs = [
            ours.mean * (high.paper[metric] - low.paper[metric])
            for low, high in combinations(rows, 2)
            if (ours := high.minus(low, metric)) is not None
        ]
        pairs = tuple(
            Pair(low.name, high.name, high.paper[metric] - low.paper[metric], high.minus(low, metric))
            for low, high in pairwise(rows)
            if high.paper[metric] != low.paper[metric]
        )
        return Order(metric, pairs, sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs))

    def to_json(self) -> str:
        """Everything as JSON."""
        rows = [
            {
                **asdict(row),
                "ours": {metric: _plain(row.ours(metric)) for metric in self.metrics},
                "difference": {metric: _plain(self.difference(row, metric)) for metric in self.metrics},
            }
            for row in self.rows
        ]
        orders = {
            order.metric: {
                "adjacent": [{**asdict(pair), "verdict": pair.verdict} for pair in order.adjacent],
                "concordant": order.concordant,
                "discordant": order.discordant,
                "tau": order.tau,
            }
            for order in map(self.order, self.published)
        }
        head = {name: getattr(self, name) for name in ("title", "source", "small", "seeds", "metrics", "reference")}
        return json.dumps({**head, "unit": "percent", "variants": rows, "order": orders}, indent=1) + "\n"


def _plain(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def read_table(sweep: Sweep, folder: str | Path, *, seeds: Sequence[int] | None = None) -> SweepTable:
    """What the finished runs under a folder gave.

    Args:
        folder: of the sweep.
        seeds: instead of the sweep's.

    Raises:
        ConfigError: a run there was started with another config than the sweep has now.
        CheckpointError: an eval.json cannot be read.
    """
    text = sweep.text
    runs = runs_of(sweep, folder, seeds=seeds)
    check_folders(runs)
    by_variant = {variant.name: [run for run in runs if run.variant is variant] for variant in text.trained}
    return SweepTable(
        title=text.title or text.path.stem,
        source=text.path.as_posix(),
        small=text.small,
        seeds=tuple(text.seeds if seeds is None else seeds),
        metrics=tuple(text.metrics),
        reference=text.reference,
        rows=tuple(_row(sweep, variant, by_variant) for variant in text.variants),
    )


def _row(sweep: Sweep, variant: VariantText, runs: Mapping[str, Sequence[Run]]) -> Row:
    if variant.only_paper is not None:
        return Row(variant.name, variant.paper, variant.only_paper, None, None, None, {})
    first = sweep.same[variant.name]
    mine = runs[first.name]
    finished = [run for run in mine if run.finished]
    times = [seconds_trained(run.folder, run.config.train.batch) for run in finished]
    return Row(
        name=variant.name,
        paper=variant.paper,
        only_paper=None,
        same_as=None if first is variant else first.name,
        steps=mine[0].config.train.steps,
        seconds=sum(times) / len(times) if times else None,
        runs={run.seed: _values(run.folder.evaluation, sweep.text.metrics) for run in finished},
    )


def _values(file: Path, metrics: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """The metrics that an evaluation has, in percent; -1 is COCO's word for nothing to find."""
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); make it again: rcnn eval {file.parent}") from error
    found = {}
    for metric, (kind, name) in metrics.items():
        numbers: Any = evaluation.get(kind, {})
        inside, _, of_class = name.partition(".")
        value = numbers.get(inside, {}).get(of_class) if of_class else numbers.get(name)
        if value is not None and value >= 0:
            found[metric] = round(100 * value, _DIGITS)
    return found


def seconds_trained(folder: RunFolder, batch: int) -> float:
    """Training time of a run by its metrics, evaluations left out, over all the times that it was stopped."""
    seconds, before = 0.0, 0
    for record in folder.records():
        if "images_per_second" in record:
            seconds += (record["step"] - before) * batch / record["images_per_second"]
            before = record["step"]
    return seconds
