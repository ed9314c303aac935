"""`rcnn predict`: a trained model over image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolbox.errors import DataError, counted


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN|WEIGHTS", help="A run folder, or its model.safetensors.")],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Images, folders (searched with subfolders) and glob patterns."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made when missing.")],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest score drawn. predictions.json holds every detection.")
    ] = 0.5,
    pictures: Annotated[bool, typer.Option(help="Draw each image into OUT/pictures.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Images that go through the network together.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")] = "auto",
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="A plugin's file or module that is not where the run had it; may be repeated."),
    ] = None,
) -> None:
    """Detect objects in images; write COCO results and pictures.

    OUT/predictions.json is a COCO results list, with the values of plugin branches beside; OUT/images.json says which
    file each image id is and which class each category id. Images that cannot be read are listed at the end, the others
    are done all the same, and the exit status is then 2.
    """
    from toolbox.cli.progress_line import progress_line
    from toolbox.engine.progress import Heartbeat, Progress
    from toolbox.inference import Predictor
    from toolbox.inference.files import ResultFolder, find_images, predict_files
    from toolbox.inference.predictor import choose_device

    chosen = choose_device(device, instead="--device cpu")
    predictor = Predictor(run, device=chosen, batch=batch, plugins=plugin or ())
    files = find_images(inputs, predictor.channels)
    problems = []
    with (
        progress_line() as progress,
        ResultFolder(out, predictor, pictures=pictures, threshold=threshold) as folder,
    ):
        heartbeat = Heartbeat(f"predicting on {chosen}", len(files))
        for done, problem in enumerate(predict_files(predictor, files, folder), start=1):
            problems += [] if problem is None else [problem]
            heartbeat(done)
            progress(Progress("predict", done, len(files)))
    done = len(files) - len(problems)
    if done:
        typer.echo(f"{counted(done, 'image')}, {counted(folder.count, 'detection')}: {folder.results_path}")
    if pictures and done:
        typer.echo(f"pictures of detections with a score of at least {threshold:g}: {out / 'pictures'}")
    if problems:
        listing = "\n".join(map(str, problems))
        nothing = "" if done else "; nothing is written"
        raise DataError(f"{len(problems)} of {counted(len(files), 'image')} could not be read{nothing}:\n{listing}")
