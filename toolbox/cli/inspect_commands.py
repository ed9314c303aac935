"""`rcnn check` and `rcnn show`: what is wrong with a config, and what it becomes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolbox.errors import ConfigError, DataError, DeviceError, Problem, ToolboxError, counted, near_path

if TYPE_CHECKING:
    from toolbox.data.counts import ObjectCounts
    from toolbox.plan import Plan
    from toolbox.schema import Config

_CLASSES_SHOWN = 12
_IMAGE = (480, 640)  # height and width, before resizing, of the image that stages are tried on

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, or a run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. model.backbone.depth=101.")
]


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option(help="Also open the data sets.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    step: Annotated[
        bool | None,
        typer.Option(
            help="Also train on the first batches, and forecast time and memory; by default in a terminal.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which no further step is begun.")] = 20.0,
) -> None:
    """Everything that can be known before training, in one list.

    Reads the config, opens its data sets and builds the model without memory; exits with 2 if anything is wrong. Then,
    in a terminal, a few real training steps are measured in a folder that is thrown away: time and memory of the run.
    """
    from toolbox.precheck import precheck

    config = config_file(config)
    precheck(config, overrides or ())
    from toolbox.data.spot_checks import warn_of_shared_images
    from toolbox.engine.announce import sampled
    from toolbox.engine.datasets import sampling_of
    from toolbox.models.builder import attempt
    from toolbox.schema import load_config

    with _collected_warnings() as notes:
        checked = load_config(config, overrides or ())
        sets, problems = _open_data(checked) if data else ({}, [])
        counts = {name: _counted(checked, name, dataset, problems) for name, dataset in sets.items()}
        warn_of_shared_images(sets.get("train"), sets.get("val"))
        model = attempt(problems, lambda: _build_on_meta(checked, sets))
        transfer = _transfer(checked, sets, problems) if model is not None else None
        if transfer is None or not transfer.fills_backbone:
            # Once more, as the first missing file would hide what is wrong with the stages behind it.
            attempt(problems, lambda: _build_on_meta(checked, sets, weights=True))
        problems += _training_problems(checked, sets, model)
        problems += _class_problems(checked, sets)
    if strict:
        problems += [Problem(str(config), "", f"warning: {note}") for note in notes.texts]
    if problems or model is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    typer.echo(f"ok: {config}")
    for name, dataset in sets.items():
        typer.echo(f"  data.{name}: {counted(len(dataset), 'image')}, {_objects(dataset, counts[name])}")
    for line in transfer.lines() if transfer is not None else ():
        typer.echo(f"  {line}")
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"  model: {checked.model.cls.__name__}, {count / 1e6:.1f} M parameters")
    images = checked.train.steps * checked.train.batch
    sampling = sampling_of(checked, sets["train"]) if "train" in sets else None
    if sampling is not None:
        typer.echo(f"  data.train: {sampled(sampling)}")
    epoch = sampling.images_per_epoch if sampling is not None else len(sets.get("train", ()))
    epochs = f", {images / epoch:.1f} epochs" if epoch else ""
    typer.echo(f"  train: {counted(checked.train.steps, 'step')} of {counted(checked.train.batch, 'image')}{epochs}")
    if "train" in sets and (sys.stdout.isatty() if step is None else step):
        from toolbox.cli.forecast_lines import print_forecast

        print_forecast(checked, Path("runs") / config.stem, limit)


def show(
    config: ConfigPath,
    overrides: Overrides = None,
    size: Annotated[str, typer.Option(help="Height and width of the network's input.")] = "800x1216",
    resolved: Annotated[bool, typer.Option(help="Print the resolved config.")] = True,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Say where a value comes from, and nothing else; may be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """The resolved config, the wiring, parameters and cost."""
    from toolbox.precheck import precheck

    config = config_file(config)
    plan = precheck(config, overrides or ())
    if explain:
        typer.echo("\n".join(_explained(plan, config, overrides or (), explain)))
        return
    from toolbox.cli.wiring import wiring_lines
    from toolbox.schema import load_config

    height, separator, width = size.partition("x")
    if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ToolboxError(f"--size is HEIGHTxWIDTH in pixels, e.g. 800x1216, not '{size}'")
    checked = load_config(config, overrides or ())
    if resolved:
        typer.echo(checked.to_yaml())
    sets, problems = _open_data(checked)
    model = _build_on_meta(checked, sets)
    if not sets:
        reason = f": {problems[0].message}" if problems else ""
        typer.echo(f"shown for one class; the classes come from the data set, which is not here{reason}\n")
    typer.echo("\n".join(wiring_lines(model, int(height), int(width))))


def _explained(plan: Plan | None, config: Path, overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    from toolbox.explain import explain

    if plan is None:
        from toolbox.schema import load_config

        plan = load_config(config, overrides).plan
    return [line for key in keys for line in explain(plan, key)]


def config_file(path: Path) -> Path:
    """A run folder stands for its config."""
    inside = path / "config.yaml"
    return inside if path.is_dir() and inside.is_file() else path


class _Notes(logging.Handler):
    """Keeps the warnings that go through the log; printing them is the log's own handler's matter."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.texts[record.getMessage()] = None


@contextmanager
def _collected_warnings() -> Iterator[_Notes]:
    """The toolbox's warnings and Python's, which are sent through the log too."""
    log, notes = logging.getLogger("toolbox"), _Notes()
    log.addHandler(notes)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield notes
        for text in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
            log.warning(text)
    finally:
        log.removeHandler(notes)


def _open_data(config: Config) -> tuple[dict[str, Any], list[Problem]]:
    """Build the data sets; what cannot be read becomes a problem at its place in the config."""
    from toolbox.engine.datasets import data_problem

    sets, problems = {}, []
    for name in ("train", "val"):
        plan: Plan | None = getattr(config.data, name)
        if plan is None:
            continue
        absent = _absent_paths(plan)
        problems += absent
        if not absent:
            try:
                sets[name] = plan.build()
            except ConfigError as error:
                problems += error.problems
            except (ToolboxError, OSError) as error:
                problems.append(data_problem(plan, str(error)))
    return sets, problems


def _counted(config: Config, name: str, dataset: Any, problems: list[Problem]) -> ObjectCounts | None:
    from toolbox.data.counts import count_objects
    from toolbox.data.spot_checks import try_images
    from toolbox.engine.datasets import data_problem

    try:
        try_images(dataset)
        return count_objects(dataset)
    except (ToolboxError, OSError) as error:
        problems.append(data_problem(getattr(config.data, name), str(error)))
    return None


def _objects(dataset: Any, counts: ObjectCounts | None) -> str:
    """`83 objects: circle 20, square 21, …`; of many classes the most frequent ones and the rarest."""
    if counts is None:
        return f"{counted(len(dataset.classes), 'class', 'classes')} ({_few(dataset.classes)})"
    pairs = [(name, int(count)) for name, count in zip(dataset.classes, counts.objects, strict=True)]
    shown = pairs
    if len(pairs) > _CLASSES_SHOWN:
        pairs.sort(key=lambda pair: -pair[1])
        shown = pairs[:_CLASSES_SHOWN]
    listed = ", ".join(f"{name} {count}" for name, count in shown)
    if len(pairs) > len(shown):
        listed += f", … ({len(pairs)} classes, the rarest: {pairs[-1][0]} {pairs[-1][1]})"
    within = "" if counts.images == len(dataset) else f" in the first {counts.images}"
    return f"{counted(int(counts.objects.sum()), 'object')}{within}: {listed}"


def _training_problems(config: Config, sets: dict[str, Any], model: Any) -> list[Problem]:
    """What else training builds or asks for before its first step."""
    from toolbox.cli.trial import forward_problems
    from toolbox.engine.channels import check_channels
    from toolbox.engine.datasets import check_objects, check_watching, placed, sampling_of
    from toolbox.engine.model_switches import apply_switches
    from toolbox.engine.optim import build_optimizer
    from toolbox.engine.precision import choose_precision
    from toolbox.inference.predictor import choose_device
    from toolbox.models.builder import attempt, check_ground_truth

    problems: list[Problem] = []
    settings = config.train
    for component in (*config.data.transforms, *settings.loggers):
        attempt(problems, component.build)
    attempt(problems, lambda: settings.schedule.build(steps=settings.steps))
    if model is not None:
        attempt(problems, lambda: build_optimizer(config, model))
        resize = config.data.resize
        problems += forward_problems(config.model, model, *(resize.size(*_IMAGE) if resize else _IMAGE))
        attempt(problems, lambda: apply_switches(config, model))  # behind the trial, which would be compiled
    if "val" in sets or config.data.val is None:
        with suppress(DataError, OSError):
            attempt(problems, lambda: check_watching(config, sets.get("val")))
    if "train" in sets:
        attempt(problems, lambda: check_channels(config, sets["train"], sets.get("val")))
        try:
            check_objects(config, sets["train"])
            with placed(config.data.train):
                sampling_of(config, sets["train"])
        except DataError as error:
            problems.append(Problem("", "", str(error)))
        # An image that cannot be read was reported when the objects were counted.
        with suppress(DataError, OSError):
            attempt(problems, lambda: check_ground_truth(config, sets["train"]))
    try:
        device = choose_device(settings.device)
    except DeviceError as error:
        return [*problems, config.plan["train"].problem(str(error), "device")]
    try:
        choose_precision(settings.precision, device)
    except ValueError as error:
        problems.append(config.plan["train"].problem(str(error), "precision"))
    return problems


def _absent_paths(plan: Plan) -> list[Problem]:
    """The keys that a data set names its files with are conventions: `images` and `annotations`."""
    problems = []
    for name in ("images", "annotations"):
        value = plan.given.get(name)
        if isinstance(value, (str, Path)) and not Path(value).expanduser().exists():
            base = "" if Path(value).is_absolute() else f" (paths are relative to the current folder, {Path.cwd()})"
            problems.append(plan.problem(f"no such file or folder: {value}{near_path(value) or base}", name))
    return problems


def _class_problems(config: Config, sets: dict[str, Any]) -> list[Problem]:
    from toolbox.engine.evaluate import check_classes, check_skeleton
    from toolbox.models.builder import uses_joints

    if len(sets) < 2 or config.data.val is None:
        return []
    try:
        check_classes(sets["train"].classes, sets["val"], "data.train", "data.val")
        if uses_joints(config):
            check_skeleton(sets["train"].skeleton, sets["val"], "data.train", "data.val")
    except DataError as error:
        return [config.data.val.problem(str(error))]
    return []


def _build_on_meta(config: Config, sets: dict[str, Any], *, weights: bool = False) -> Any:
    from toolbox.data.interfaces import channels_of
    from toolbox.models.builder import check_wiring

    dataset = sets.get("train") or sets.get("val")
    return check_wiring(
        config,
        classes=dataset.classes if dataset else ("object",),
        skeleton=dataset.skeleton if dataset else _any_skeleton(),
        channels=channels_of(dataset),
        weights=weights,
    )


def _transfer(config: Config, sets: dict[str, Any], problems: list[Problem]) -> Any:
    """What `train.init_from` would give the model; None without it, or where it cannot be used."""
    from toolbox.engine.datasets import known_of
    from toolbox.engine.init_from import plan_transfer, source_of, warn_of_little
    from toolbox.models.builder import attempt

    dataset = sets.get("train") or sets.get("val")
    if config.train.init_from is None:
        return None
    if dataset is None:  # what fits depends on the classes
        attempt(problems, lambda: source_of(config))
        return None
    transfer = attempt(problems, lambda: plan_transfer(config, known_of(dataset)))
    if transfer is not None:
        warn_of_little(transfer)
    return transfer


def _any_skeleton() -> Any:
    """Stands for the data set's, where that cannot be read."""
    from toolbox.structures import Skeleton

    return Skeleton(names=tuple(f"joint{index}" for index in range(17)), sigmas=(0.05,) * 17)


def _few(names: Any) -> str:
    if not names:
        return "none"
    shown = ", ".join(list(names)[:8])
    return f"{shown}, …" if len(names) > 8 else shown
