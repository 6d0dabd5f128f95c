"""How far a run has come, and what is seen to between two calls of its step."""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import cluster, config as config_lib, runtime, steps
from trainer.run import checkpoints as checkpoints_lib, directory, stopping


class RunState:
    """The position of a run: how many steps it has taken, and the answers of its epoch so far.

    After each call of the step it asks all workers for a stop, looks whether losses and
    gradients were finite, and saves a checkpoint when one is due.

    Attributes:
        step: steps taken since the run began.
        stopped: whether a stop was asked for, which all workers agree on.
        is_recorded: whether the scores at this step are in `metrics.jsonl`.
        images_per_second: of the last epoch; None unless this process has trained.
    """

    def __init__(
        self,
        config: config_lib.Config,
        run: directory.RunDirectory,
        devices: runtime.Devices,
        checkpoints: checkpoints_lib.Checkpoints,
        stop: stopping.StopRequest,
        describe_batch: Callable[[int], str],
    ):
        """Goes on from the last checkpoint, if there is one.

        Args:
            config: the settings.
            run: where the run is kept.
            devices: where it computes.
            checkpoints: to restore and to save.
            stop: what asks for a stop.
            describe_batch: function of a step to the posters in its batch, in words.

        Raises:
            config.UsageError: there are checkpoints that cannot be read or do not fit, or the
                workers do not have the same.
        """
        self._config = config
        self._run = run
        self._devices = devices
        self._checkpoints = checkpoints
        self._stop = stop
        self._describe_batch = describe_batch
        self._vote = cluster.make_vote(devices.strategy)
        self._last_save = time.monotonic()
        self.step, *answers = checkpoints.restore()
        cluster.check_same_step(devices.strategy, self.step)
        self._answers = [tuple(answers)]
        self._pending: list[tuple[int, dict[str, tf.Tensor]]] = []  # Not yet on the host.
        self.stopped = False
        self.images_per_second: float | None = None
        self.is_recorded = (run.read_metrics()["step"] == self.step).any()

    def begin_epoch(self) -> None:
        """Forgets the answers of the epoch before."""
        self._answers = []

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
        self._check_finite(self._pending[-1:])  # One call late: the device has its next work.
        self._pending.append((self.step, outputs))
        self.step += count
        self.is_recorded = False
        is_due = time.monotonic() - self._last_save > self._config.checkpoint_every_seconds
        is_due = self._agree(save=self._devices.is_chief and is_due)
        if save or is_due or self.stopped:
            self._save()

    def should_stop(self) -> bool:
        """Asks all workers whether to stop; they must call it equally often."""
        self._agree()
        return self.stopped

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and logits, float32 [N, G], of the posters of this epoch so far."""
        labels, logits = (np.concatenate(parts) for parts in zip(*self._answers, strict=True))
        self._answers = [(labels, logits)]
        return labels, logits

    def prune(self) -> None:
        """Removes the checkpoints that are neither among the newest nor the best."""
        if self._devices.is_chief:
            self._checkpoints.prune(self._run.best_step())

    def _agree(self, save: bool = False) -> bool:
        self.stopped, save = self._vote(self._stop.requested, save)
        return save

    def _save(self) -> None:
        self._check_finite(self._pending)
        self._answers.append(steps.collect([outputs for _, outputs in self._pending]))
        self._pending = []
        self._checkpoints.save(self.step, *self.answers())
        self.prune()
        self._last_save = time.monotonic()

    def _check_finite(self, outputs: list[tuple[int, dict[str, tf.Tensor]]]) -> None:
        """Stops the run at the first step whose loss or gradients were not finite."""
        for steps_before, output in outputs:
            finite = output["finite"].numpy()
            if not finite.all():
                step = steps_before + int(np.argmin(finite)) // self._devices.num_replicas + 1
                raise config_lib.UsageError(
                    f"The loss or its gradients are not finite at step {step}. Its batch: "
                    f"{self._describe_batch(step)}.\nThe checkpoints in {self._run.checkpoints} "
                    "are from before it. A lower --learning_rate may help; give it with "
                    "--override to go on. Or begin anew in another --run_dir, with "
                    "--precision=float32."
                )
