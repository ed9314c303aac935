"""Random maps and boxes that the tests of the RoI operations share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from toolbox.ops import eager

MakeRois = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["eager", "operators"], autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs through both routes to the extension: the light one, and torch's dispatcher."""
    if request.param == "operators":
        monkeypatch.setattr(eager, "is_plain", lambda features, rois: False)
    return request.param


@pytest.fixture
def make_rois() -> MakeRois:
    def make(count: int, images: int, height: float, width: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """(R, 5): boxes of all sizes, a third of them partly outside a height × width image."""
        corners = torch.rand(count, 2, 2, dtype=dtype) * 1.4 - 0.2
        low, high = corners.amin(dim=1), corners.amax(dim=1)
        size = torch.tensor([width, height], dtype=dtype)
        index = torch.randint(0, images, (count, 1)).to(dtype)
        return torch.cat([index, low * size, high * size], dim=1)

    return make


@pytest.fixture
def odd_rois() -> Tensor:
    """Boxes that come out of a network that diverges, and worse; all of image 0."""
    inf, nan = float("inf"), float("nan")
    boxes = [
        (3.0, 3.0, 3.0, 3.0),  # no area
        (9.0, 9.0, 2.0, 2.0),  # corners swapped
        (-50.0, -50.0, -20.0, -20.0),  # left of and above the map
        (500.0, 500.0, 900.0, 900.0),  # right of and below it
        (-1e9, -1e9, 1e9, 1e9),
        (-1e30, 2.0, 1e30, 5.0),
        (nan, 1.0, 4.0, 4.0),
        (1.0, nan, 4.0, nan),
        (-inf, -inf, inf, inf),
        (1.0, 1.0, inf, inf),
        (0.0, 0.0, 12.0, 10.0),
    ]
    return torch.tensor([(0.0, *box) for box in boxes])
