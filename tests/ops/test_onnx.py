"""RoIAlign exported to ONNX and run by ONNX Runtime, whose RoiAlign is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toolbox import ops
from toolbox.errors import ToolboxError
from toolbox.ops.onnx import pool_regions, translations

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Pyramid(torch.nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, fine: Tensor, coarse: Tensor, rois: Tensor) -> Tensor:
        return ops.multiscale_roi_align(
            [fine, coarse], rois, (3, 2), strides=(4, 8), canonical_size=40, **self.settings
        )


class Single(torch.nn.Module):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return ops.roi_align(features, rois, 3, spatial_scale=0.25, aligned=False)


def exported(model: torch.nn.Module, arguments: tuple[Tensor, ...], path: Path) -> Any:
    shapes = tuple([None] * (len(arguments) - 1) + [{0: torch.export.Dim("regions", min=2, max=100)}])
    program = torch.onnx.export(
        model,
        arguments,
        dynamo=True,
        custom_translation_table=translations(),
        dynamic_shapes=shapes,
        verbose=False,
    )
    program.save(path)
    return onnxruntime.InferenceSession(str(path))


def run(session: Any, *arguments: Tensor) -> Tensor:
    names = [value.name for value in session.get_inputs()]
    (result,) = session.run(None, {name: given.numpy() for name, given in zip(names, arguments, strict=True)})
    return torch.from_numpy(result)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"sampling_ratio": 0}, {"aligned": False}, {"canonical_level": 3}])
def test_a_pyramid_gives_the_same_for_any_number_of_regions(make_rois, settings, tmp_path: Path, route: str) -> None:
    if route != "eager":
        pytest.skip("exporting has one route")
    maps = [torch.randn(2, 4, s, s) for s in (16, 8)]
    model = Pyramid(**settings)
    session = exported(model, (*maps, make_rois(5, 2, 64.0, 64.0)), tmp_path / "model.onnx")
    # Of every size, swapped corners and no area among them; 40 × 40 lies on the edge between two levels.
    rois = torch.cat(
        [make_rois(30, 2, 64.0, 64.0), torch.tensor([[0.0, 9, 9, 5, 5], [1, 4, 4, 4, 4], [0, 2, 2, 42, 42]])]
    )
    torch.testing.assert_close(run(session, *maps, rois), model(*maps, rois), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_map(make_rois, tmp_path: Path, route: str) -> None:
    if route != "eager":
        pytest.skip("exporting has one route")
    features, rois = torch.randn(2, 4, 16, 16), make_rois(5, 2, 64.0, 64.0)
    session = exported(Single(), (features, rois), tmp_path / "model.onnx")
    more = make_rois(12, 2, 64.0, 64.0)
    torch.testing.assert_close(run(session, features, more), Single()(features, more), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["align_max", "pool_max"])
def test_what_onnx_computes_otherwise_is_refused(method: str) -> None:
    with pytest.raises(ToolboxError, match=f"'{method}' has no counterpart in ONNX; use RoIAlign with mode: average"):
        pool_regions([None], None, (2, 2), (1.0,), (0,), method, 2, True, 224.0, 4)
