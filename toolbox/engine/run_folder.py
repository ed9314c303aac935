"""The folder of a run: who may write it, and what lies where."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from toolbox.engine.run_lock import locked
from toolbox.errors import ConfigError, Problem, StorageError, ToolboxError, near_path
from toolbox.weights import replacing
from toolbox.yaml_nodes import write_inline

logger = logging.getLogger("toolbox")

# What a resumed run may change: how it is watched and where it runs, not what is trained. Endings of dotted keys.
CHANGEABLE = (
    "train.device",
    "train.eval_every",
    "train.validation_loss",
    "train.early_stopping",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.log_every",
    "train.on_nonfinite",
    "train.loggers",
    "train.pictures",
    "data.workers",
    "data.timeout",
    "data.cache",
    "data.cache_gb",
    "plugins",
)


_TOLD = 8  # settings that differ


class RunFolder:
    """Names of a run's files, and the few ways to write them.

    Args:
        path: the folder; made when it is opened.
        resumed_by: what a user does to go on with the run, as messages say it; the command, if not told.
    """

    def __init__(self, path: str | Path, *, resumed_by: str | None = None) -> None:
        self.path = Path(path)
        self.resumed_by = f"'rcnn train {path} --resume'" if resumed_by is None else resumed_by
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "eval.json"
        self.model = self.path / "model.safetensors"
        self.checkpoint = self.path / "checkpoint.pt"
        self.good = self.path / "checkpoint_good.pt"  # what a rollback goes back to
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "model_best.safetensors"
        self.capsules = self.path / "capsules"
        self.pictures = self.path / "pictures"
        self.log = self.path / "log.txt"
        self.lock = self.path / ".lock"
        self.launch = self.path / ".launch"  # which torchrun's it is

    @contextlib.contextmanager
    def opened(self, config: str, *, resume: bool, may_change: Sequence[str] = ()) -> Iterator[None]:
        """Own the folder: no other process writes it, its config is `config`, and the log goes to its `log.txt`.

        Args:
            config: the resolved YAML.
            resume: go on with the run that is there.
            may_change: keys that the config may have otherwise than the run that is there, besides `CHANGEABLE`.

        Raises:
            RunLocked: another process owns it.
            ToolboxError: it holds a run and `resume` is False, or files of something else.
            ConfigError: the run that is there has another config.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ToolboxError(f"{self.path}: this is a file; give a folder for the run") from None
        except OSError as error:
            raise self._unusable(error) from error
        self._refuse_foreign()
        with locked(self.path, self.lock, self._unusable):
            self._prepare(config, resume, may_change)
            self._remove_halves()
            with _logging_to(self.log):
                yield

    def _refuse_foreign(self) -> None:
        """A folder with other files than a run's is not written into: its config.yaml might be the user's own."""
        held = sorted(file.name for file in self.path.iterdir() if not file.name.startswith("."))
        if held and not self.held() and not (self.config.exists() and self.log.exists()):
            shown = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
            raise ToolboxError(f"{self.path}: holds files, but no run ({shown}); name a new or empty folder with --run")

    def _remove_halves(self) -> None:
        """Remove what a process that was killed while it wrote left behind: halves as large as a checkpoint."""
        written = (self.checkpoint, self.good, self.model, self.best, self.earlier("*"))
        for file in chain.from_iterable(name.parent.glob(f".{name.name}.*.tmp") for name in written):
            file.unlink(missing_ok=True)

    def earlier(self, step: int | str) -> Path:
        """Where the checkpoint after a step is kept once it is not the last."""
        number = f"{step:08}" if isinstance(step, int) else step
        return self.checkpoints / f"step_{number}.pt"

    def held(self) -> list[str]:
        """Names of the files by which the folder holds a run."""
        return [file.name for file in (self.checkpoint, self.model, self.metrics) if file.exists()]

    def _prepare(self, config: str, resume: bool, may_change: Sequence[str]) -> None:
        if not resume:
            held = self.held()
            if held:
                raise ToolboxError(
                    f"{self.path}: holds a run already ({', '.join(held)}); go on with it by {self.resumed_by}, "
                    "name another folder with --run, or remove this one"
                )
        elif self.checkpoint.exists() and self.config.exists():
            self.check_same(config, may_change)
        elif not self.checkpoint.exists():
            self._refuse_trained()
            logger.warning("nothing to resume in %s: starting at step 0%s", self.path, near_path(self.path))
        with replacing(self.config) as file:
            file.write_text(config, encoding="utf-8")

    def _refuse_trained(self) -> None:
        """A run without its checkpoint would begin anew, over what it has trained."""
        kept = sorted(self.checkpoints.glob(self.earlier("*").name))
        if not kept and not any("eval" in record for record in self.records()):  # evaluations come after checkpoints
            return
        if kept:
            way = f"put one of {self.checkpoints} in its place (ln -f {kept[-1]} {self.checkpoint})"
        else:
            way = f"start a new run from its model (train.init_from={self.path}, another --run)"
        raise ToolboxError(f"{self.checkpoint}: it is gone, so this run cannot go on; {way}, or remove this folder")

    def check_same(self, config: str, may_change: Sequence[str] = ()) -> None:
        """Refuse another config (resolved YAML) than the run was started with, but for what it may change.

        Raises:
            ConfigError: the keys that differ.
        """
        before = _flat(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        now = _flat(yaml.safe_load(config))
        changed = [
            key
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
            and not any(key == c or key.startswith(f"{c}.") for c in (*CHANGEABLE, *may_change))
        ]
        ways = (
            f"a run is resumed with the config it was started with, by {self.resumed_by} (give another --run for "
            "another config)"
        )
        if not changed:
            return
        told = [f"the run has {_said(before, key)}, now it is {_said(now, key)}" for key in changed[:_TOLD]]
        more = f"; {len(changed) - _TOLD} more settings differ" if len(changed) > _TOLD else ""
        told[-1] += f"{more}; {ways}"
        raise ConfigError([Problem(str(self.config), key, text) for key, text in zip(changed, told, strict=False)])

    def _unusable(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(f"{self.path}: the run folder cannot be written: {reason}; name another with --run")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`; on a full disk it is left out, for the run is worth more than a line."""
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would spoil the next one
                os.truncate(self.metrics, size)
            logger.warning("%s: a line is left out: %s", self.metrics, error.strerror or error)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`: what an interrupted run logged beyond its last checkpoint comes again."""
        if not self.metrics.exists():
            return
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        with replacing(self.metrics) as file:
            file.write_text("".join(kept), encoding="utf-8")

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; one that was cut short by a crash is left out."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        records = []
        for line in lines:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "step" in record:
                    records.append(record)
        return records

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after `step` is on record."""
        return any("eval" in record and record["step"] == step for record in self.records())

    def read_evaluation(self, step: int, watched: str | None = None) -> dict[str, Any] | None:
        """`eval.json`, where it is the evaluation after `step`: its numbers are those on record. Else None.

        Args:
            watched: metric that it must have been watched for.
        """
        record = next((record for record in self.records() if "eval" in record and record["step"] == step), None)
        if record is None or (watched is not None and watched not in record.get("watched", {})):
            return None
        try:
            kept = json.loads(self.evaluation.read_text(encoding="utf-8"))
            return kept if summary_of(kept) == record["eval"] else None
        except (OSError, ValueError, AttributeError):
            return None

    def write_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Replace `eval.json`.

        Raises:
            StorageError: it cannot be written; the one of before is whole.
        """
        with replacing(self.evaluation) as file:
            file.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def summary_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by kind as a line of `metrics.jsonl` has them: without those of each class."""
    return {kind: {k: v for k, v in numbers.items() if k != "per_class"} for kind, numbers in metrics.items()}


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:  # who calls says it on the screen; the file is what a cluster leaves
        known = isinstance(error, ToolboxError)
        said = str(error) if known else f"{type(error).__name__}: {error}"
        where = None if known else sys.exc_info()
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, said, (), where))
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def _said(settings: Mapping[str, Any], key: str) -> str:
    """A value as YAML writes it: null, not None."""
    return write_inline(settings[key]) if key in settings else "nothing"


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists → dotted key → value."""
    if isinstance(value, Mapping):
        items = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {key: value}
    return {k: v for name, item in items for k, v in _flat(item, f"{key}.{name}".lstrip(".")).items()}
