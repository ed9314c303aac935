"""Parameters and multiply-adds of the paper's models, against what torchvision documents of its weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks/paper_models.py"


@pytest.fixture(scope="module")
def paper_models() -> Any:
    spec = importlib.util.spec_from_file_location("paper_models", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_models"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["paper_models"]


# torchvision's documentation, docs.pytorch.org/vision/stable/models.html (table of detection weights).
DOCUMENTED = {
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "maskrcnn_resnet50_fpn": 44_401_393,
    "keypointrcnn_resnet50_fpn": 59_137_258,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
}
# Detections on the noise that torchvision counts its operations on, 512 × 512 pixels made 800 × 800: it documents their
# number by the operations alone. Its Faster and Mask R-CNN have the same, so there the mask head did not run.
FOUND = {
    "fasterrcnn_resnet50_fpn": 0,
    "maskrcnn_resnet50_fpn": 0,
    "keypointrcnn_resnet50_fpn": 1,
    "fasterrcnn_resnet50_fpn_v2": 0,
    "maskrcnn_resnet50_fpn_v2": 100,
}


def paper_of(module: Any, peer: str) -> Any:
    return next(paper for paper in module.MODELS if paper.peer == peer)


@pytest.mark.parametrize("peer", DOCUMENTED)
def test_parameters_are_the_published_ones_but_for_rows_of_the_background(paper_models: Any, peer: str) -> None:
    assert paper_models.published(peer)["num_params"] == DOCUMENTED[peer]
    # torchvision predicts a box (4 × 1024 weights, 4 biases) and a mask (256 weights, a bias) of the background too.
    background = 4 * 1025 + (257 if peer.startswith("mask") else 0)
    ours = paper_models.parameters(paper_of(paper_models, peer).build())
    assert ours + background == DOCUMENTED[peer]


@pytest.mark.parametrize("peer", DOCUMENTED)
def test_multiply_adds_are_the_published_ones(paper_models: Any, peer: str) -> None:
    published = paper_models.published(peer)["_ops"] * 1e9
    ours = paper_models.cost(paper_of(paper_models, peer), 800, 800, FOUND[peer])
    assert ours == pytest.approx(published, rel=1e-3)


def test_models_that_torchvision_does_not_publish_equal_what_its_parts_make(paper_models: Any) -> None:
    made = [paper for paper in paper_models.MODELS if paper.peer and paper.peer not in DOCUMENTED]
    assert {"101" in paper.peer for paper in made} == {True} and len(made) == 4
    for paper in made:
        peer = paper_models.make_peer(paper.peer, paper.classes)
        background = 4 * 1025 + (257 if paper.peer.startswith("mask") else 0)
        assert paper_models.parameters(paper.build()) + background == paper_models.parameters(peer)
        theirs = paper_models.peer_cost(peer, 800, 1344, 100)
        assert paper_models.cost(paper, 800, 1344, 100) == pytest.approx(theirs, rel=1e-3)


def test_c4_stage_is_counted_on_proposals_and_on_detections(paper_models: Any) -> None:
    # Multiply-adds of stage 5 on a 7 × 7 region without stride: block 1 takes 1024 channels, with a 1 × 1 shortcut.
    cells = 7 * 7
    first = 1024 * 512 + 9 * 512 * 512 + 512 * 2048 + 1024 * 2048
    others = 2 * (2048 * 512 + 9 * 512 * 512 + 512 * 2048)
    stage = cells * (first + others)
    deconvolution_and_masks = cells * 4 * 2048 * 256 + 14 * 14 * 256 * 90
    paper = next(paper for paper in paper_models.MODELS if paper.name == "Mask R-CNN R50-C4")
    with_masks, without = (paper_models.cost(paper, 800, 1344, count) for count in (100, 0))
    assert with_masks - without == 100 * (stage + deconvolution_and_masks)
    rows = {row.stage: row.cost for row in paper_models.rcnn_rows(paper.build(), 800, 1344)}
    assert rows["model.roi_stage"] == 300 * stage
