"""The loader that ours is measured beside reads what ours reads."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

FILE = Path(__file__).resolve().parents[2] / "benchmarks/data.py"


@pytest.fixture(scope="module")
def run_lengths() -> Any:
    return runpy.run_path(str(FILE))["run_lengths"]


SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[2:4, 1:5] = 1  # rows 2 and 3 of columns 1 to 4: in columns of 6, 8 zeros, then 2 ones and 4 zeros in turn
COUNTS = [8, 2, 4, 2, 4, 2, 4, 2, 20]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [6, 8], "counts": COUNTS},
        {"size": [6, 8], "counts": mask.encode(np.asfortranarray(SQUARE))["counts"].decode()},
        [[1, 2, 5, 2, 5, 4, 1, 4]],
    ],
    ids=["list", "string", "polygon"],
)
def test_masks_of_every_kind_are_decoded(run_lengths: Any, segmentation: Any) -> None:
    assert np.array_equal(mask.decode(run_lengths(segmentation, 6, 8)).any(axis=2), SQUARE)
