"""How an optimizer step is shared by processes and backward passes."""

from __future__ import annotations

import pytest

from toolbox.accumulation import Accumulation, accumulation


@pytest.mark.parametrize(
    ("batch", "micro_batch", "world", "expected"),
    [
        (16, None, 1, (16, 1)),
        (16, 2, 1, (2, 8)),
        (16, None, 8, (2, 1)),  # the paper's: 2 images on each of 8 GPUs
        (16, 2, 4, (2, 2)),
        (16, 1, 16, (1, 1)),
        (1, 1, 1, (1, 1)),
        (24, 4, 3, (4, 2)),
    ],
)
def test_passes_times_micro_batch_times_processes_is_the_batch(
    batch: int, micro_batch: int | None, world: int, expected: tuple[int, int]
) -> None:
    assert accumulation(batch, micro_batch, world) == Accumulation(*expected)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "world", "message"),
    [
        (10, 4, 1, "batch (10) is not a multiple of micro_batch (4); batch 8 or 12, or micro_batch 1, 2, 5 or 10 fits"),
        (3, 4, 1, "batch (3) is not a multiple of micro_batch (4); batch 4, or micro_batch 1 or 3 fits"),
        (
            20,
            4,
            2,
            "batch (20) is not a multiple of micro_batch × processes (4 × 2); "
            "batch 16 or 24, or micro_batch 1, 2, 5 or 10 fits",
        ),
        # Seven images cannot be shared by two processes, so no micro-batch helps.
        (7, 1, 2, "batch (7) is not a multiple of micro_batch × processes (1 × 2); batch 6 or 8 fits"),
        (10, None, 4, "batch (10) cannot be shared equally by 4 processes; batch 8 or 12 can"),
        (2, None, 4, "batch (2) cannot be shared equally by 4 processes; batch 4 can"),
    ],
)
def test_what_does_not_divide_names_what_does(batch: int, micro_batch: int | None, world: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        accumulation(batch, micro_batch, world)
    assert str(caught.value) == message


def test_every_number_that_a_message_names_fits() -> None:
    for batch in range(1, 30):
        for micro_batch in range(1, 12):
            for world in (1, 2, 3):
                try:
                    accumulation(batch, micro_batch, world)
                except ValueError as error:
                    batches, _, sizes = str(error).partition("; batch ")[2].removesuffix(" fits").partition(", or ")
                    for other in batches.replace(" or ", ", ").split(", "):
                        assert accumulation(int(other), micro_batch, world).micro_batch == micro_batch
                    for other in sizes.removeprefix("micro_batch ").replace(" or ", ", ").split(", ") if sizes else ():
                        assert accumulation(batch, int(other), world).micro_batch == int(other)
