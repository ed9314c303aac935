"""What is done about a loss or gradient that is not finite: a capsule; then the run stops, skips or rolls back.

A skipped step is as if its batch had not been there: weights, buffers, optimizer and averages are those of before. A
rollback takes those of the last scheduled checkpoint and goes on with the *next* batch: computing the steps since then
again would, being exact, lead to the same weights at the same batch, for ever. Either way the step counts, so the order
of batches and the learning rate are those of a run where all went well, and what becomes of a step depends on (seed,
step, state) alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolbox.data.interfaces import channels_of
from toolbox.engine.capsule import Capsule, Step, look_again, save_capsule
from toolbox.engine.checkpoint import load_checkpoint, save_checkpoint
from toolbox.engine.kept import give_name
from toolbox.engine.module_statistics import Observation
from toolbox.engine.stored_batch import faults_in
from toolbox.errors import CheckpointError, StorageError, ToolboxError, counted, told
from toolbox.inference.metadata import model_metadata
from toolbox.structures import Batch

if TYPE_CHECKING:
    from toolbox.engine.job import Job
    from toolbox.engine.run_folder import RunFolder

logger = logging.getLogger("toolbox")

MOST_IN_A_ROW = 10  # a single bad batch is one skip; ten different ones in a row are weights that have gone astray
MOST_RETURNS = 3  # to the same state: each time other batches follow it, so what fails thrice is the state or the rate
MOST_CAPSULES = 3  # of a run: the first ones tell the cause, and each has the size of the weights
LEAST_SCALE = 2.0**-24  # of float16 gradients: one that still overflows would be more than 1e12
RECENT = 100  # steps whose losses a capsule tells


class TrainingDiverged(RuntimeError):
    """A loss is no longer a finite number."""


class BlackBox:
    """What a step that goes wrong can no longer tell: buffers as they were before it, and the losses that led to it.

    Args:
        model: in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._slots = [
            (module, name)
            for module in model.modules()
            if module.training
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._copies = [buffer.detach().clone() for buffer in self._buffers()]

    def _buffers(self) -> list[Tensor]:
        return [module.get_buffer(name) for module, name in self._slots]

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Copy what a forward pass may change: batch norm's running statistics follow a batch that is not finite."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._buffers())

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what forward passes changed since `keep_buffers`."""
        for buffer, copy in zip(self._buffers(), self._copies, strict=True):
            buffer.copy_(copy)


def all_finite(values: Iterable[float]) -> bool:
    """Whether every value is a finite number."""
    return all(map(math.isfinite, values))


def nonfinite_weights(model: nn.Module) -> list[str]:
    """Names of the weights and buffers that are not finite."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    checked = [value.isfinite().all() for value in state.values()]
    finite = torch.stack(checked).tolist() if checked else []
    return [name for name, good in zip(state, finite, strict=True) if not good]


def check_loss_scale(job: Job) -> None:
    """End a run whose float16 gradients are not finite at any scale. It waits for the device: not in every step.

    Raises:
        TrainingDiverged: GradScaler leaves out one step after another.
    """
    scaler = job.state.scaler
    if scaler.is_enabled() and (scale := scaler.get_scale()) < LEAST_SCALE:
        raise TrainingDiverged(
            f"step {job.state.step}: float16's loss scale has fallen to {scale:.3g}: the gradient is not finite at any "
            "scale; start a new run with train.precision=float32 (or bfloat16) and train.clip_norm, where such a step "
            "is found at once and leaves a capsule"
        )


def on_nonfinite(
    job: Job, step: int, batches: Sequence[Batch], losses: Mapping[str, float], norm: float | None
) -> None:
    """Write a capsule of a step whose loss or gradient is not finite, and do what `train.on_nonfinite` says.

    All ranks call it for the same step. Afterwards the state is that of before the step, or an earlier one.

    Args:
        job: its weights, optimizer and averages are those of before the step.
        step: its number, from 0.
        batches: micro-batches of the step.
        losses: of the step, means over this process's images.
        norm: of the gradient, where it is known.

    Raises:
        TrainingDiverged: the run is to stop, or has skipped or rolled back too often.
    """
    setbacks, way = job.state.setbacks, job.config.train.on_nonfinite
    job.black_box.restore_buffers()
    record = _record(job, step, batches, losses, norm)
    said = f"step {step + 1}: {_what(record)}; learning rate {record.lr:.3g}, images {_ids(batches)}"
    said = "; ".join([said, *_keep_capsule(job, record, batches)])
    job.ranks.wait_for_all()  # whoever left sooner would have torchrun end the others in the midst of a capsule
    if record.faults:
        said += f". The data is at fault: {'; '.join(record.faults)}"
    if way == "stop":
        raise TrainingDiverged(f"{said}. {_advice(job)}")
    setbacks.in_a_row += 1
    if way == "roll_back":
        _roll_back(job, said)
        return
    setbacks.skipped += 1
    if record.bad_weights:
        raise TrainingDiverged(
            f"{said}. The weights were not finite before the step already ({_first(record.bad_weights)}), so that "
            "skipping steps does not help: train.clip_norm would find the gradient that made them so, and "
            f"train.on_nonfinite=roll_back goes back behind it. {_kept(job)}"
        )
    _check_row(job, said)
    logger.warning("%s. The step is skipped", said)


def _check_row(job: Job, said: str) -> None:
    if job.state.setbacks.in_a_row >= MOST_IN_A_ROW:
        raise TrainingDiverged(f"{said}. These were {MOST_IN_A_ROW} steps in a row. {_advice(job)}")


def _record(job: Job, step: int, batches: Sequence[Batch], losses: Mapping[str, float], norm: float | None) -> Step:
    settings, on_gpu = job.config.train, job.device.type == "cuda"
    return Step(
        step=step,
        seed=settings.seed,
        rank=job.ranks.rank,
        world=job.ranks.size,
        reason="loss" if norm is None or math.isfinite(norm) else "gradient",
        losses=dict(losses),
        gradient_norm=norm,
        lr=job.lr(step),
        shares=[len(batch) * job.ranks.size / settings.batch for batch in batches],
        device=torch.cuda.get_device_name(job.device) if on_gpu else job.device.type,
        autocast=None if job.autocast is None else str(job.autocast).removeprefix("torch."),
        loss_scale=job.state.scaler.get_scale() if job.state.scaler.is_enabled() else 1.0,
        recent=list(job.black_box.recent),
        faults=[fault for batch in batches for fault in faults_in(batch)],
        bad_weights=nonfinite_weights(job.state.model),
    )


def _what(record: Step) -> str:
    listed = ", ".join(f"{name} {value:.4g}" for name, value in record.losses.items())
    if record.reason == "loss" and all_finite(record.losses.values()):
        return f"the loss of another process is not finite; here it is: {listed}"
    if record.reason == "loss":
        return f"the loss is not finite: {listed}"
    return f"the gradient is not finite (norm {record.gradient_norm}), though the loss is: {listed}"


def _keep_capsule(job: Job, record: Step, batches: Sequence[Batch]) -> list[str]:
    """Look at the step again and write its capsule; whatever fails in it must not hide that the run diverged.

    Returns:
        What is to be told of it.
    """
    setbacks, model = job.state.setbacks, job.state.model
    if setbacks.capsules >= MOST_CAPSULES:
        setbacks.unwritten += 1
        without = counted(setbacks.unwritten, "step")
        return [f"no capsule is written, for {MOST_CAPSULES} are kept already ({without} without one)"]
    setbacks.capsules += 1
    seen: Observation | None = None
    said = []
    try:
        with _uncompiled():
            seen = look_again(model, batches, record, job.device, job.autocast)
        said.append(seen.origin())
    except Exception as error:  # out of memory, or a plugin that does not bear values that are not finite
        record.notes.append(f"the step could not be looked at again: {told(error)}")
        said += record.notes
    job.black_box.restore_buffers()  # that was one more forward pass
    guilty = seen is None or bool(seen.bad_losses) or seen.first_gradient is not None
    found = job.ranks.any(guilty)
    # Of finite gradients the norm may still be infinite: then no rank is guilty, and the first one writes.
    if not guilty and (found or not job.ranks.first):
        return [*said, "another rank writes the capsule"]
    suffix = f"_rank_{record.rank}" if record.rank else ""
    path = job.folder.capsules / f"step_{record.step + 1:06}{suffix}.safetensors"
    data = job.train_set
    try:
        metadata = model_metadata(job.config, data.classes, data.category_ids, data.skeleton, channels_of(data))
        path.parent.mkdir(exist_ok=True)
        save_capsule(path, Capsule(record, list(batches), model.state_dict(), metadata, seen))
        said.append(f"`rcnn train --replay {path}` computes the step again")
    except Exception as error:
        said.append(f"its capsule could not be written: {error if isinstance(error, ToolboxError) else told(error)}")
    return said


def _roll_back(job: Job, said: str) -> None:
    """Take the state of the last scheduled checkpoint, but for the counts and what was logged."""
    state, setbacks, folder = job.state, job.state.setbacks, job.folder
    try:
        earlier = job.ranks.from_first(load_checkpoint(folder.good) if job.ranks.first else {})
        returns = 1 + (setbacks.rolled_back if setbacks.rolled_to == earlier["step"] else 0)
        if returns > MOST_RETURNS:
            again = f"The run was rolled back to the state after step {earlier['step']} {MOST_RETURNS} times"
            raise TrainingDiverged(f"{said}. {again}. {_advice(job)}")
        _check_row(job, said)  # a state that is rolled back to in a scheduled step is kept anew, under another number
        setbacks.rolled_back, setbacks.rolled_to = returns, earlier["step"]
        earlier |= {"window": state.window.state_dict(), "setbacks": setbacks.state_dict()}
        state.load_state_dict(earlier, str(folder.good))
    except CheckpointError as error:
        raise TrainingDiverged(f"{said}. It cannot be rolled back: {error}") from error
    logger.warning("%s. Rolled back to the state after step %d; the next batch follows", said, setbacks.rolled_to)


def ready_to_roll_back(job: Job, *, scheduled: bool) -> None:
    """See that there is a state to go back to, before the first step.

    Args:
        scheduled: whether the checkpoint that the run goes on from is one that `train.checkpoint_every` or an
            evaluation wrote. A stop writes others, which are not gone back to: a run that was never stopped has none.
    """
    good, step = job.folder.good, job.state.step
    if step == 0:
        save_checkpoint(good, job.state.state_dict())
    elif scheduled or not good.exists() or load_checkpoint(good)["step"] > step:  # later: it went back by hand
        keep_as_good(job.folder)


def keep_as_good(folder: RunFolder) -> None:
    """Make the checkpoint what a rollback goes back to: another name of the same file, until the next is written."""
    try:
        give_name(folder.checkpoint, folder.good)
    except StorageError as error:
        logger.error("%s; a rollback goes back behind it", error)


def _advice(job: Job) -> str:
    return (
        "Try a lower train.lr, a longer warm-up (train.schedule.warmup_steps) or train.clip_norm, or go on over such "
        f"steps with train.on_nonfinite; {_kept(job)}"
    )


def _kept(job: Job) -> str:
    if job.folder.checkpoint.exists():
        return (
            f"the last checkpoint is kept, and {job.folder.resumed_by} goes on from it (with other settings: a new run "
            f"with train.init_from={job.folder.path})"
        )
    return f"no checkpoint was written yet (train.checkpoint_every is {job.config.train.checkpoint_every})"


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _ids(batches: Sequence[Batch]) -> list[int]:
    return [image_id for batch in batches for image_id in batch.image_ids]


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Hooks see only what is not compiled. Who has not compiled has not loaded the compiler either: seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
