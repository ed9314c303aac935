"""Every test of this folder that asks for `geometry` runs twice: on the compiled module and on its numpy twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolbox.masks import encode, raster
from toolbox.masks.native import kernels

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.fixture(params=["compiled", "numpy"])
def geometry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(encode, "kernels", lambda: None)
        monkeypatch.setattr(raster, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("toolbox.masks._masks is not built (TOOLBOX_NATIVE=0)")
    return request.param


def read_annotations(name: str) -> dict[str, Any]:
    path = DATA / name / "annotations" / "instances_val.json"
    if not path.exists():
        pytest.skip(f"the data set {name} is not beside the project")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def coco_small() -> dict[str, Any]:
    return read_annotations("coco_small")


@pytest.fixture(scope="session")
def nuclei() -> dict[str, Any]:
    return read_annotations("nuclei")
