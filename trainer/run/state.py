"""How far a run has come, and what is seen to between two calls of its step."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import cluster, config as config_lib, runtime
from trainer.run import checkpoints as checkpoints_lib, directory, stopping

_SECONDS_OF_A_LONG_STEP = 0.01
_SECONDS_PER_CALL = 0.05


@dataclasses.dataclass(frozen=True)
class Phase:
    """A run, or the training of its head that comes first.

    Attributes:
        config: its settings.
        run: where it is kept.
        devices: where it computes.
        stop: what asks for a stop.
    """

    config: config_lib.Config
    run: directory.RunDirectory
    devices: runtime.Devices
    stop: stopping.StopRequest


class RunState:
    """The position of a run: how many steps it has taken, and the loss of its epoch so far.

    About once a second it asks all workers for a stop, looks whether losses and gradients were
    finite, and saves a checkpoint when one is due. In between nothing waits for the device.

    Attributes:
        step: steps taken since the run began.
        loss_sum: of the steps of this epoch so far.
        stopped: whether a stop was asked for, which all workers agree on.
        is_recorded: whether the scores at this step are in `metrics.jsonl`, or on their way.
        images_per_second: of the last epoch; None unless this process has trained.
        share_waited: share of the last epoch's time in which steps waited for batches; likewise.
        seconds_waited: how long those of this epoch have waited, in this process.
        steps_per_call: steps that the device may take before Python is asked again.
    """

    def __init__(
        self,
        phase: Phase,
        checkpoints: checkpoints_lib.Checkpoints,
        describe_batch: Callable[[int], str],
        wait_for_records: Callable[[], None],
    ):
        """Goes on from the last checkpoint, if there is one.

        Args:
            phase: what is trained.
            checkpoints: to restore and to save.
            describe_batch: function of a step to the posters in its batch, in words.
            wait_for_records: waits until the scores of the epochs before are in `metrics.jsonl`.

        Raises:
            config.UsageError: there are checkpoints that cannot be read or do not fit, or the
                workers do not have the same.
        """
        self._config, self._run = phase.config, phase.run
        self._devices, self._stop = phase.devices, phase.stop
        self._checkpoints = checkpoints
        self._describe_batch = describe_batch
        self._wait_for_records = wait_for_records
        self._vote = cluster.Vote(self._devices.strategy)
        self._last_save = time.monotonic()
        self.step, self.loss_sum = checkpoints.restore()
        cluster.check_same_step(self._devices.strategy, self.step)
        self._pending: list[dict[str, tf.Tensor]] = []  # Since the last look, not on the host.
        self.steps_per_call = self._config.steps_per_call or 1
        self.stopped = False
        self.images_per_second: float | None = None
        self.share_waited: float | None = None
        self.seconds_waited = 0.0
        self.is_recorded = (self._run.read_metrics()["step"] == self.step).any()

    def begin_epoch(self) -> None:
        """Forgets the losses of the epoch before."""
        self.loss_sum = 0.0
        self.seconds_waited = 0.0
        self._vote.begin()

    def next_save(self, end: int) -> int:
        """Returns the step, at most `end`, after which a checkpoint is saved by its number."""
        every = self._config.checkpoint_every_steps or end
        return min(end, (self.step // every + 1) * every)

    def advance(self, count: int, outputs: dict[str, tf.Tensor], save: bool) -> None:
        """Counts steps that were taken, and sees to what is due after them.

        Args:
            count: how many steps.
            outputs: what they returned; they may still be in work.
            save: whether to save a checkpoint, due or not.
        """
        self._pending.append(outputs)
        self.step += count
        self.is_recorded = False
        if not self._vote.is_due(count) and not save:
            return
        self._look()
        is_due = time.monotonic() - self._last_save > self._config.checkpoint_every_seconds
        self.stopped, is_due = self._vote.hold(
            self._stop.requested, self._devices.is_chief and is_due
        )
        if not self._config.steps_per_call:
            self.steps_per_call = choose_steps_per_call(self._vote.seconds_per_step)
        if save or is_due or self.stopped:
            self._save()

    def should_stop(self) -> bool:
        """Returns whether to stop; all workers must ask equally often, a batch each time."""
        if self._vote.is_due(1):
            self.wait_for_workers()
        return self.stopped

    def wait_for_workers(self) -> None:
        """Returns when all workers have come here, and asks them for a stop."""
        (self.stopped,) = self._vote.hold(self._stop.requested)

    def has_converged(self) -> bool:
        """Returns whether scores have not risen for as long as `patience` allows.

        All workers must ask; the chief knows.
        """
        if not (self._config.patience and self.is_recorded):
            return False
        self._wait_for_records()
        since_best = self._run.evaluations_since_best() if self._devices.is_chief else 0
        self.stopped, has_converged = self._vote.hold(
            self._stop.requested, since_best >= self._config.patience
        )
        return has_converged

    def prune(self) -> None:
        """Removes the checkpoints that are neither among the newest nor the best."""
        self._wait_for_records()
        if self._devices.is_chief:
            self._checkpoints.prune(self._run.best_step())

    def _save(self) -> None:
        # A run goes on from here: what was to be recorded before would never be again.
        self._wait_for_records()
        self._checkpoints.save(checkpoints_lib.State(self.step, self.loss_sum))
        self.prune()
        self._last_save = time.monotonic()
        self._vote.begin()

    def _look(self) -> None:
        """Takes the losses from the device, or stops at the first step that was not finite.

        Python waits for the device here, and nowhere else between two saves: a copy from a GPU
        comes after all that it was given to do.
        """
        pending, self._pending = self._pending, []
        losses, finite, waited = (
            tf.concat([outputs[name] for outputs in pending], axis=0).numpy()
            for name in ("loss", "finite", "waited")
        )
        self.seconds_waited += float(waited.sum())
        if finite.all():
            for loss in losses:  # One by one: the sum is the same however many there are a look.
                self.loss_sum += float(loss)
            return
        step = self.step - len(finite) + int(np.argmin(finite)) + 1
        what = "The loss or its gradients are"
        if self._devices.precision == "mixed_float16":
            what = "However little it is scaled for float16, the loss or its gradients are"
        raise config_lib.UsageError(
            f"{what} not finite at step {step}. Its batch: {self._describe_batch(step)}.\n"
            f"The checkpoints in {self._run.checkpoints} are from before it. A lower "
            "--learning_rate may help; give it with --override to go on. Or begin anew in another "
            "--run_dir, with --precision=float32."
        )


def choose_steps_per_call(seconds_per_step: float) -> int:
    """Returns how many steps a call of the device has, if --steps_per_call does not say.

    Where steps are short, Python's part of a call, up to about 1 ms, would be felt.
    """
    if seconds_per_step >= _SECONDS_OF_A_LONG_STEP:
        return 1
    return int(_SECONDS_PER_CALL / seconds_per_step)
