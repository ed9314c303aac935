"""`rcnn weights`: detectors of other projects as model files of the toolbox, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolbox.errors import ToolboxError, counted, did_you_mean

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SOURCES = ("torchvision", "detectron2", "mmdetection")
TARGETS = ("torchvision",)


@app.callback()
def weights() -> None:
    """Take over trained detectors of other projects, or give them one."""


@app.command("import", no_args_is_help=True)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other project's weights.")],
    config: Annotated[Path, typer.Option(help="Of the same model, e.g. configs/torchvision/mask_rcnn_r50_fpn.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model file to write, e.g. model.safetensors.")],
    source: Annotated[str, typer.Option("--from", help=f"Whose weights: {', '.join(SOURCES)}.")] = "torchvision",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAMES",
            help="What it was trained on: coco, a COCO annotation file, a file with a name a line, or names by comma. "
            "Else the config's data says it, if it is there, or the number of rows.",
        ),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]…", help="Over the config.")] = None,
) -> None:
    """Write another project's detector as a model file, which predict and eval read.

    Pickled files are read without running code.
    """
    _choose("from", source, SOURCES)
    from toolbox.inference.metadata import model_metadata
    from toolbox.weights import save_model
    from toolbox.weights.exchange.classes import read_classes
    from toolbox.weights.exchange.importing import config_for, import_checkpoint
    from toolbox.weights.foreign_files import read_checkpoint

    _check_out(out, (".safetensors",))
    checkpoint = read_checkpoint(file)
    settings, published = config_for(file, config, overrides or ())
    table = None if classes is None else read_classes(classes)
    detector = import_checkpoint(checkpoint, settings, source=source, classes=table)
    metadata = model_metadata(settings, detector.classes, detector.category_ids, detector.skeleton, detector.channels)
    save_model(out, detector.model.state_dict(), metadata)
    count = counted(len(detector.classes), "class", "classes")
    typer.echo(f"{out}: {count}: {', '.join(detector.classes[:6])}{_more(detector.classes)}")
    if published:
        epsilon = settings.model["backbone"]["norm_eps"]
        typer.echo(f"torchvision's published file of {published}: model.backbone.norm_eps={epsilon:g}")
    typer.echo(f"next: rcnn predict {out} IMAGE --out found")


@app.command(no_args_is_help=True)
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder, or its model.safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .pth, .pt or .safetensors.")],
    target: Annotated[
        str, typer.Option("--to", help=f"Whose model is to load it: {', '.join(TARGETS)}.")
    ] = "torchvision",
) -> None:
    """Write a model as a state dict for another project's model of the same architecture."""
    _choose("to", target, TARGETS)
    from toolbox.inference.loading import load_detector
    from toolbox.weights.exchange.exporting import export_torchvision, write_state_dict
    from toolbox.weights.torchvision import model_name

    _check_out(out, (".pth", ".pt", ".safetensors"))
    detector = load_detector(model)
    state = export_torchvision(detector)
    write_state_dict(out, state)
    rows = len(state["roi_heads.box_predictor.cls_score.bias"])
    typer.echo(f"{out}: for torchvision's {model_name(state)} with num_classes={rows}")


def _choose(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ToolboxError(
            f"--{option} {value}: {did_you_mean(value, known).lstrip('; ') or 'not known'} ({', '.join(known)})"
        )


def _check_out(out: Path, suffixes: tuple[str, ...]) -> None:
    """Before anything is read: the file's name says what it is, and its folder is there."""
    if out.suffix not in suffixes:
        raise ToolboxError(f"--out {out}: name a file that ends in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise ToolboxError(f"--out {out}: there is no folder {out.parent}; make it, or name a file in another")


def _more(names: tuple[str, ...]) -> str:
    return ", …" if len(names) > 6 else ""
