"""`rcnn data`: look at what a config trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from toolbox.cli.inspect_commands import ConfigPath, Overrides, config_file
from toolbox.errors import ToolboxError, did_you_mean

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Look at images as training sees them."""


@app.command()
def browse(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the pictures; by default runs/browse/ and the config's name."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Most pictures.")] = 16,
    split: Annotated[
        str, typer.Option(metavar="train|val", help="As training sees it, or as evaluation does.")
    ] = "train",
    epoch: Annotated[int, typer.Option(min=0, help="Of training; each augments an image otherwise.")] = 0,
    image: Annotated[
        int | None, typer.Option(help="Id of the only image to draw, in so many epochs.", show_default=False)
    ] = None,
    holding: Annotated[
        str | None, typer.Option("--class", help="Only images that show this class.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="As the data set has them: not resized, not augmented.")] = False,
) -> None:
    """Draw images with their boxes, masks, joints and class names, as the model gets them.

    The pictures are the same each time: augmentation depends on train.seed, the epoch and the image. OUT/sheet.jpg
    shows all of them.
    """
    if split not in ("train", "val"):
        near = did_you_mean(split, ("train", "val"))
        raise ToolboxError(f"--split is train (as training sees it) or val (as evaluation does), not '{split}'{near}")
    from toolbox.precheck import precheck

    file = config_file(config)
    precheck(file, overrides or ())
    from toolbox.engine.browse import Wanted, browse
    from toolbox.engine.progress import counted
    from toolbox.schema import load_config

    folder = out or Path("runs") / "browse" / (config.stem if file == config else config.name)
    checked = load_config(file, overrides or ())
    drawn = browse(checked, Wanted(cast(Literal["train", "val"], split), count, epoch, image, holding, raw), folder)
    if drawn.sheet is None:
        raise ToolboxError(f"data.{split}: no image{f' shows {holding}' if holding else ''}, so nothing is drawn")
    objects = ", ".join(f"{name} {number}" for name, number in drawn.objects.most_common(8))
    more = ", …" if len(drawn.objects) > 8 else ""
    typer.echo(f"data.{split}: {counted(len(drawn.files), 'picture')} in {folder}, all of them in {drawn.sheet}")
    typer.echo(f"objects: {objects or 'none'}{more}")
