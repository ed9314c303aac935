"""The table of `train.init_from`: short enough to be read, and its values add up."""

from __future__ import annotations

from toolbox.engine.init_from import Fate
from toolbox.engine.transfer_table import table


def patchwork(count: int) -> list[Fate]:
    """A backbone of which every second tensor is in the file, and a neck that is."""
    fates = [
        Fate(f"backbone.layer.{index}.{half}", 10, 10 * (half == "a"), *became)
        for index in range(count)
        for half, became in (("a", ("loaded",)), ("b", ("re-initialised", f"(1,) → ({index + 2},)")))
    ]
    return [*fates, Fate("neck.weight", 7, 7, "loaded"), Fate("neck.bias", 1, 1, "loaded")]


def test_a_part_of_few_fates_is_told_row_by_row() -> None:
    assert [" ".join(line.split()) for line in table(patchwork(2), title="file")] == [
        "file",
        "part of the model values became",
        "backbone.layer.0.a 10 loaded",
        "backbone.layer.0.b 10 re-initialised: (1,) → (2,)",
        "backbone.layer.1.a 10 loaded",
        "backbone.layer.1.b 10 re-initialised: (1,) → (3,)",
        "neck 8 loaded",
        "28 of 48 values are loaded (58.3 %)",
    ]


def test_a_patchwork_is_told_in_sums_with_an_example() -> None:
    assert [" ".join(line.split()) for line in table(patchwork(60), title="file")] == [
        "file",
        "part of the model values became",
        "backbone, 60 of 120 tensors 600 loaded",
        "backbone, 60 of 120 tensors 600 re-initialised: e.g. backbone.layer.0.b, (1,) → (2,)",
        "neck 8 loaded",
        "608 of 1.2 k values are loaded (50.3 %)",
    ]
