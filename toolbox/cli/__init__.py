"""The command `rcnn`: thin, and the only place that prints.

A command is a line of `COMMANDS`, and a function with typer's annotations in the module that it names. Only the command
that runs has its module imported, so that `rcnn --help` is quick and a module may import what it likes.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from toolbox.errors import ToolboxError
from toolbox.orphans import die_with_torchrun


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: as typed after `rcnn`.
        module: module of the package `toolbox.cli`; where it does not exist, neither does the command.
        function: in that module; or a `typer.Typer` for a command with subcommands.
        summary: its line in `rcnn --help`.
        passes_on: options that it does not know are arguments, for a script that it runs.
        computes: it runs a model for long, so that the allocator is worth setting.
    """

    name: str
    module: str
    function: str
    summary: str
    passes_on: bool = False
    computes: bool = False

    @property
    def exists(self) -> bool:
        return importlib.util.find_spec(f"toolbox.cli.{self.module}") is not None

    def load(self) -> Any:
        return getattr(importlib.import_module(f"toolbox.cli.{self.module}"), self.function)


COMMANDS = (
    Command("train", "train", "train", "Train a detector, or go on with a run.", computes=True),
    Command("eval", "train", "evaluate", "Evaluate a run or a config with weights.", computes=True),
    Command("sweep", "sweep", "sweep", "Train the variants of a base config; one table.", computes=True),
    Command(
        "predict", "predict", "predict", "Detect objects in images; write COCO results and pictures.", computes=True
    ),
    Command("check", "inspect_commands", "check", "Everything that can be known before training, in one list."),
    Command("show", "inspect_commands", "show", "The resolved config, the wiring, parameters and cost."),
    Command("data", "data", "app", "Look at images as training sees them."),
    Command("list", "components", "list_components", "Components, their arguments and defaults."),
    Command("bench", "bench", "bench", "Measure speed, ours beside the peers'.", passes_on=True),
    Command("schema", "components", "schema", "JSON Schema of the YAML, for editors."),
    Command("plugin", "plugin", "app", "Start a plugin of your own."),
    Command("weights", "weights", "app", "Take over detectors of other projects, or give them one."),
)


def build_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """The app, with the function of the one command that `arguments` name, and the summaries of the others."""
    app = typer.Typer(
        name="rcnn",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": _HELP},
    )
    app.callback(help="Faster and Mask R-CNN from one YAML.")(_options)
    chosen = _chosen(arguments)
    for command in COMMANDS:
        if not command.exists:
            continue
        function = command.load() if command.name == chosen else _stand_in(command.summary)
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=command.name, help=command.summary)
        else:
            settings: dict[str, Any] = {"ignore_unknown_options": command.passes_on}
            if command.passes_on and len([word for word in arguments if not word.startswith("-")]) > 1:
                settings["help_option_names"] = []  # the script's own help is asked for
            app.command(command.name, short_help=command.summary, context_settings=settings)(function)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for wrong input too.")] = False,
) -> None:
    # `main` reads both, so that they may stand anywhere; they are declared here for the help.
    del version, debug


def _stand_in(summary: str) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = summary
    return command


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _log_to_stderr() -> None:
    log = logging.getLogger("toolbox")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain())
        log.addHandler(handler)
    log.setLevel(logging.INFO)


_HELP = ["--help", "-h"]
_NO_OPTIONS = {
    f"--{name}": key
    for key, names in {
        "train.lr": ("lr", "learning-rate"),
        "train.steps": ("steps", "max-iter"),
        "train.batch": ("batch", "batch-size"),
        "train.seed": ("seed",),
        "train.device": ("device",),
        "data.workers": ("workers", "num-workers"),
    }.items()
    for name in names
}


def _refuse_dashes(arguments: Sequence[str]) -> None:
    """Config keys are no options; they hold a dot, or are those that other tools have as options."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[index + 1 :]), "VALUE")
        if name in ("--config", "--config-file", "--cfg") and arguments[0] != "weights":
            command = "COMMAND" if arguments[0].startswith("-") else arguments[0]
            raise ToolboxError(f"no option '{name}': the config stands alone; write rcnn {command} {value}")
        if name == "--split" and arguments[0] == "eval":
            raise ToolboxError(
                "no option '--split': an evaluation is of data.val; to evaluate on other images write "
                "data.val.annotations=FILE data.val.images=FOLDER, or data.val={type: …}"
            )
        if name == "--seed" and arguments[0] == "sweep":
            raise ToolboxError("no option '--seed'; did you mean '--seeds'? (e.g. --seeds 0,1,2)")
        known = arguments[0] in ("train", "eval", "sweep", "check", "show") and name in _NO_OPTIONS
        if known or re.fullmatch(r"--\w+(\.\w+)+", name):
            key = _NO_OPTIONS.get(name, name[2:])
            raise ToolboxError(f"no option '{name}': config keys are written without dashes; write {key}={value}")


def _keep_memory(arguments: Sequence[str]) -> None:
    if any(command.computes for command in COMMANDS if command.name == _chosen(arguments)):
        from toolbox.cli.allocator import keep_memory

        keep_memory()


def _chosen(arguments: Sequence[str]) -> str | None:
    """The command that is named."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _blame(error: Exception) -> str | None:
    """The line of a plugin's own code that an error came through, and what was being done; None if it did not."""
    if "toolbox.plugins" not in sys.modules:
        return None
    from toolbox.plugins import plugin_files

    files = set(plugin_files())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return None
    doing = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"plugin {frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}: {reason}{doing}"


def _speaks() -> bool:
    """Whether this process says what is wrong: under torchrun all meet the same wrong input, until they train."""
    if os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ:
        return True
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def main(argv: Sequence[str] | None = None) -> None:
    """Run `rcnn` and exit: 0 done, 2 wrong input, 1 our own fault or a failed run, 130 interrupted."""
    die_with_torchrun()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments == ["--version"]:
        from toolbox import __version__

        typer.echo(f"rcnn-toolbox {__version__}")
        sys.exit(0)
    _log_to_stderr()
    try:
        _refuse_dashes(arguments)
        if argv is None:  # else the process, and its allocator, are somebody else's
            _keep_memory(arguments)
        build_app(arguments)(arguments, prog_name="rcnn")
    except ToolboxError as error:
        if debug:
            traceback.print_exc()
        elif _speaks():
            typer.echo(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        line = _blame(error)
        if line is not None:
            typer.echo(line, err=True)
        sys.exit(1)
