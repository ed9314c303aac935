"""`rcnn train` and `rcnn eval`: configs to runs, and runs to average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolbox.errors import CheckpointError, ToolboxError, counted, near_path

if TYPE_CHECKING:
    from torch import Tensor

    from toolbox.inference.loading import LoadedDetector

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. train.lr=0.01.", show_default=False)
]


def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file.", show_default=False)] = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run folder; by default runs/ and the config's name.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="CAPSULE",
            help="Compute a step that went wrong again, and lay it out.",
            show_default=False,
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="With --replay: a plugin that is not where the run had it; may be repeated."),
    ] = None,
) -> None:
    """Train a detector, or go on with a run.

    The run folder gets config.yaml (resolved), metrics.jsonl, eval.json, model.safetensors, checkpoint.pt and log.txt.
    Ctrl-C finishes the step, writes a checkpoint and leaves; --resume goes on from there as if nothing had happened.

    A step whose loss is not finite leaves a capsule in the run's capsules/. rcnn train --replay CAPSULE needs nothing
    else: it computes the step again on the CPU (train.device=cuda: on the GPU, in the run's precision), shows what
    every module put out, and leaves with 0 if the loss is not finite there either, else with 1.
    """
    if replay is not None:
        _replay(replay, config, overrides or [], plugin or (), others={"--run": run is not None, "--resume": resume})
        return
    if config is None:
        raise ToolboxError("Missing argument 'CONFIG': write rcnn train CONFIG.yaml, or rcnn train --replay CAPSULE")
    if plugin:
        raise ToolboxError("--plugin goes with --replay; a config lists its own under 'plugins'")
    config, run = _run_meant(config, run, resume=resume)
    from toolbox.precheck import precheck

    precheck(config, overrides or ())
    from toolbox.cli.progress_line import progress_line
    from toolbox.engine.distributed import ranks_of_environment
    from toolbox.engine.nonfinite import TrainingDiverged
    from toolbox.engine.train import train as run_training
    from toolbox.schema import load_config

    checked = load_config(config, overrides or ())
    folder = run or Path("runs") / config.stem
    with progress_line() as progress:
        try:
            result = run_training(checked, folder, resume=resume, on_progress=progress)
        except TrainingDiverged as error:
            progress.clear()
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    if not result["finished"]:
        if progress.shown:  # elsewhere the log has said so
            step, steps = result["step"], checked.train.steps
            typer.echo(f"stopped after step {step} of {steps}; go on with rcnn train {folder} --resume", err=True)
        raise typer.Exit(130)
    if not ranks_of_environment().first:
        return
    if result["metrics"]:
        typer.echo(metrics_table(result["metrics"]))
    if result["stopped_early"]:
        typer.echo(f"ended before step {checked.train.steps}: {result['stopped_early']}")
    typer.echo(f"{folder}: {counted(result['step'], 'step')} done, the model is {folder / 'model.safetensors'}")


def _run_meant(config: Path, run: Path | None, *, resume: bool) -> tuple[Path, Path | None]:
    """A run folder in the place of CONFIG, or its config.yaml, means that run, with all settings that it was given."""
    folder = config if config.is_dir() else config.parent
    is_run = (folder / "config.yaml").is_file() and (folder / "log.txt").is_file()
    if run is not None or not is_run or not (config.is_dir() or config.name == "config.yaml"):
        return config, run
    if resume:
        return folder / "config.yaml", folder
    if config.is_dir():
        raise ToolboxError(f"{folder}: this is a run; go on with it by rcnn train {folder} --resume")
    return config, run


def _replay(
    capsule: Path, first: Path | None, overrides: list[str], plugins: Sequence[str], *, others: Mapping[str, bool]
) -> None:
    for option, given in others.items():
        if given:
            raise ToolboxError(f"--replay and {option} exclude each other: a capsule is a step by itself")
    if first is not None and "=" not in str(first):  # what stands where CONFIG would
        raise ToolboxError(f"--replay takes no CONFIG ({first}): the capsule has its own; leave it out")
    from toolbox.cli.replay import replay_step

    replay_step(capsule, [*([] if first is None else [str(first)]), *overrides], plugins)


def evaluate(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="A run folder, its model.safetensors, or a YAML file.")
    ],
    overrides: Overrides = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Weights for a CONFIG, or instead of a RUN's own.", show_default=False),
    ] = None,
) -> None:
    """Evaluate a run or a config with weights on data.val.

    A run's eval.json is replaced, unless there are overrides or other weights.
    """
    from toolbox.precheck import precheck

    if source.suffix in (".yaml", ".yml"):
        precheck(source, overrides or ())
    from toolbox.cli.progress_line import progress_line
    from toolbox.engine.datasets import open_dataset
    from toolbox.engine.distributed import taking_part
    from toolbox.engine.evaluate import evaluate as run_evaluation
    from toolbox.engine.job import device_of
    from toolbox.engine.run_folder import RunFolder

    loaded = _load(source, overrides or [], weights)
    config = loaded.config
    device = device_of(config)
    dataset = open_dataset(config, "val")
    _check(loaded, dataset, weights or source)
    with taking_part() as ranks, progress_line() as progress:
        ranks.join(device)
        metrics = run_evaluation(
            loaded.model,
            dataset,
            resize=config.data.resize,
            device=ranks.device(device),
            workers=config.data.workers,
            max_detections=config.test.detections,
            ranks=ranks,
            on_progress=progress,
        )
    if not ranks.first:
        return
    if source.is_dir() and not overrides and weights is None:
        RunFolder(source).write_evaluation(metrics)
    typer.echo(metrics_table(metrics))


def _load(source: Path, overrides: list[str], weights: Path | None) -> LoadedDetector:
    from toolbox.data.interfaces import channels_of
    from toolbox.engine.datasets import open_dataset
    from toolbox.engine.evaluate import check_classes
    from toolbox.inference.loading import LoadedDetector, load_detector
    from toolbox.models.builder import build_detector
    from toolbox.schema import load_config
    from toolbox.weights import load_weights

    if source.suffix not in (".yaml", ".yml"):
        if not source.exists():
            raise CheckpointError(
                f"{source}: no such run folder or file{near_path(source)} (by default, runs lie in runs/)"
            )
        loaded = load_detector(source, overrides)
        if weights is None:
            return loaded
        state, classes = _read_weights(weights, loaded.classes)
        load_weights(loaded.model, state, str(weights))
        return replace(loaded, classes=classes)
    if weights is None:
        raise CheckpointError(f"{source}: a config has no weights; give a run folder, or add --weights FILE")
    config = load_config(source, overrides)
    dataset = open_dataset(config, "val")
    channels = channels_of(dataset)
    state, classes = _read_weights(weights, dataset.classes)
    check_classes(classes, dataset, str(weights), "data.val")
    model = build_detector(config, classes=dataset.classes, skeleton=dataset.skeleton, channels=channels)
    load_weights(model, state, str(weights))
    return LoadedDetector(model, config, classes, dataset.category_ids, dataset.skeleton, channels)


def _read_weights(path: Path, classes: Sequence[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a weight file and the classes it was trained for; `classes` where it does not say."""
    from toolbox.inference.metadata import read_classes
    from toolbox.weights import load_model

    state, metadata = load_model(path)
    return state, read_classes(metadata, path) if "classes" in metadata else tuple(classes)


def _check(loaded: LoadedDetector, dataset: Any, source: Path) -> None:
    from toolbox.data.interfaces import channels_of
    from toolbox.engine.evaluate import check_classes, check_skeleton
    from toolbox.models.builder import uses_joints

    if len(dataset) == 0:
        raise ToolboxError("data.val has no images to evaluate on")
    if channels_of(dataset) != loaded.channels:
        fits = counted(loaded.channels, "channel")
        reads = f"{source} reads images of {fits}, those of data.val have {channels_of(dataset)}"
        raise ToolboxError(f"{reads}; set data.val.channels={loaded.channels}, or give a model of such images")
    check_classes(loaded.classes, dataset, str(source), "data.val")
    if uses_joints(loaded.config):
        check_skeleton(loaded.skeleton, dataset, str(source), "data.val")


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """AP by kind, and by class where there are several; percent, a dash where there is nothing to find."""
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR")
    columns = [name for name in order if any(name in numbers for numbers in metrics.values())]
    lines = [f"{'AP in %':<10}" + "".join(f"{name:>8}" for name in columns)]
    lines += [
        f"{kind:<10}" + "".join(_cell(numbers.get(name)) for name in columns) for kind, numbers in metrics.items()
    ]
    classes = max((list(numbers["per_class"]) for numbers in metrics.values()), key=len, default=[])
    if len(classes) > 1:
        width = max(10, *(len(name) + 2 for name in classes))
        lines += ["", f"{'AP in %':<{width}}" + "".join(f"{kind:>11}" for kind in metrics)]
        lines += [
            f"{name:<{width}}" + "".join(f"{_cell(n['per_class'].get(name)):>11}" for n in metrics.values())
            for name in classes
        ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'–' if value is None or value < 0 else f'{100 * value:.1f}':>8}"
