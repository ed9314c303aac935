"""The table of `train.init_from`: what became of a model's tensors, those of one fate in one row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

_MOST = 10  # rows of one outermost module; one of more, as of a network of another depth, is told in sums


class _Fate(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def values(self) -> int: ...
    @property
    def taken(self) -> int: ...
    @property
    def became(self) -> str: ...
    @property
    def why(self) -> str: ...


def table(fates: Sequence[_Fate], *, title: str) -> list[str]:
    """Lines: a title, a row for each outermost module whose tensors have one fate, and the sum.

    A part of the model that is of a patchwork of fates has a row for each fate, with an example.
    """
    rows = [("part of the model", "values", "became")]
    own = [fate for fate in fates if fate.became != "not used"]
    others = [fate for fate in fates if fate.became == "not used"]
    parts = {".".join(pieces[:end]) for pieces in (fate.name.split(".") for fate in own) for end in range(len(pieces))}
    for name, members in [*_in_sums(_rows(own)), *_in_sums(_rows(others, apart_from=parts))]:
        first = members[0]
        why = first.why
        if len({fate.why for fate in members}) > 1:
            first = next(fate for fate in members if fate.why)
            why = f"e.g. {first.name}, {first.why}"
        became = f"{first.became}: {why}" if why else first.became
        rows.append((name, amount(sum(fate.values for fate in members)), became))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    taken, values = sum(fate.taken for fate in own), sum(fate.values for fate in own)
    part = 1000 * taken // max(1, values) / 10  # rounded down, so that 100 % is all
    return [
        title,
        *(f"  {name:<{widths[0]}}  {count:>{widths[1]}}  {became}" for name, count, became in rows),
        f"  {amount(taken)} of {amount(values)} values are loaded ({part:.1f} %)",
    ]


def _in_sums(rows: Iterable[tuple[str, list[_Fate]]]) -> Iterator[tuple[str, list[_Fate]]]:
    """The rows, but one for each fate where the rows of an outermost module are too many to be read."""
    for outermost, group in groupby(rows, key=lambda row: row[0].partition(".")[0]):
        listed = list(group)
        if len(listed) <= _MOST:
            yield from listed
            continue
        members = [fate for _, fates in listed for fate in fates]
        for became in dict.fromkeys(fate.became for fate in members):
            alike = [fate for fate in members if fate.became == became]
            yield f"{outermost}, {len(alike)} of {len(members)} tensors", alike


def _rows(
    fates: Sequence[_Fate], depth: int = 0, apart_from: Collection[str] = ()
) -> Iterator[tuple[str, list[_Fate]]]:
    """Groups by the name's first `depth + 1` parts; one of several fates, or named as in `apart_from`, is split."""
    groups: dict[str, list[_Fate]] = {}
    for fate in fates:
        groups.setdefault(".".join(fate.name.split(".")[: depth + 1]), []).append(fate)
    for name, members in groups.items():
        alike = len({(fate.became, fate.why) for fate in members}) == 1 and name not in apart_from
        if alike or len(members) == 1:
            yield (name if len(members) > 1 else members[0].name), members
        else:
            yield from _rows(members, depth + 1, apart_from)


def amount(count: int) -> str:
    """`23.5 M`, `5.1 k`, `812`."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)
