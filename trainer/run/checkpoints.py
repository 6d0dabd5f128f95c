"""Save and restore the state of a run.

    checkpoints/00000193/   one checkpoint, complete from the moment it has this name

A checkpoint is written under another name and renamed, so it is there or it is not.
"""

import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from trainer import config as config_lib
from trainer.models import registry
from trainer.run import directory as directory_lib

_PREFIX = "state"
_INCOMPLETE = ".incomplete-"
# A data file that is cut off gives an IndexError.
_READ_ERRORS = (OSError, tf.errors.OpError, RuntimeError, ValueError, IndexError)


class State(NamedTuple):
    """How far a run has come."""

    step: int
    loss_sum: float  # Of the steps of the epoch so far.


class Checkpoints:
    """The checkpoints of a run.

    Each has all that a run needs to go on as if nothing had happened: model, optimizer
    with its loss scale, the state of dropout's random numbers, the step, and the sum of the
    losses of the epoch so far. The data's position follows from the step.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        model: keras.Model,
        optimizer,
        num_kept: int,
        chief: bool = True,
        average: keras.Model | None = None,
    ):
        """Watches `directory`, to which the chief alone writes.

        All workers must save together, since synchronised variables are read by all.

        Args:
            directory: of the run's checkpoints; all workers read it.
            model: the model.
            optimizer: its optimizer.
            num_kept: the newest checkpoints to keep, beside the best.
            chief: whether this worker writes to `directory`.
            average: the model that has a running average of the model's weights, if there is one.
        """
        self._directory = directory
        self._num_kept = num_kept
        self._chief = chief
        with tf.device("/cpu:0"):
            self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
            self._loss_sum = tf.Variable(0, dtype=tf.float64, trainable=False)
        # What dropout draws from is part of `variables`, not of `weights`.
        weights = {id(variable) for variable in model.weights}
        self._checkpoint = tf.train.Checkpoint(
            model=model,
            **({"average": average} if average else {}),
            optimizer=optimizer,
            random=[v.value for v in model.variables if id(v) not in weights],
            step=self._step,
            loss_sum=self._loss_sum,
        )

    def restore(self) -> State:
        """Restores the newest checkpoint that can be read, if there is one.

        Raises:
            config.UsageError: there are checkpoints, and none can be read, or they are of
                another model or optimizer.
        """
        if path := find(self._directory):
            try:
                self._checkpoint.read(str(path / _PREFIX)).assert_existing_objects_matched()
            except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
                raise config_lib.UsageError(
                    f"The checkpoint {path} does not fit these settings ({_first_line(error)}). "
                    "Go on with those that the run began with, in a --precision like its own, or "
                    "choose another --run_dir."
                ) from error
        return State(int(self._step.numpy()), float(self._loss_sum.numpy()))

    def save(self, state: State) -> None:
        """Saves the state of a run.

        Raises:
            config.UsageError: it could not be written; earlier checkpoints are as they were.
        """
        step = state.step
        self._step.assign(step)
        self._loss_sum.assign(state.loss_sum)
        if not self._chief:
            with tempfile.TemporaryDirectory(prefix="worker-checkpoint-") as unread:
                self._checkpoint.write(os.path.join(unread, _PREFIX))
            return
        incomplete = self._directory / f"{_INCOMPLETE}{step:08}"
        try:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
            self._checkpoint.write(str(incomplete / _PREFIX))
            # One that is there already is damaged, or comes after one that was gone back to.
            for path in _complete(self._directory):
                if int(path.name) >= step:
                    shutil.rmtree(path)
            incomplete.replace(self._directory / f"{step:08}")
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(incomplete, ignore_errors=True)
            earlier = find(self._directory)
            raise config_lib.UsageError(
                f"The checkpoint of step {step} could not be written to {self._directory}: "
                f"{_first_line(error)}\n"
                + (f"That of step {int(earlier.name)} is intact. " if earlier else "")
                + "Make room, and give the same command again to go on."
            ) from error

    def prune(self, best_step: int | None) -> None:
        """Removes all but the newest checkpoints and the best."""
        for path in _complete(self._directory)[: -self._num_kept]:
            if int(path.name) != best_step:
                shutil.rmtree(path)

    def remove_leftovers(self) -> None:
        """Removes what a killed run was about to write."""
        for path in self._directory.glob(_INCOMPLETE + "*"):
            shutil.rmtree(path, ignore_errors=True)


def find(directory: pathlib.Path, best_step: int | None = None) -> pathlib.Path | None:
    """Returns the best checkpoint, or the newest that can be read, or None if there is none.

    One that is damaged is named on stderr and passed over.

    Args:
        directory: of the checkpoints.
        best_step: the step of the best one, if it is wanted.

    Raises:
        config.UsageError: there are some, and none can be read.
    """
    paths = _complete(directory)
    if best_step is not None:
        paths = [p for p in paths if int(p.name) != best_step] + [directory / f"{best_step:08}"]
    damaged = []
    for path in reversed(paths):
        try:
            _read_all(path)
        except _READ_ERRORS as error:
            damaged.append(path)
            print(
                f"WARNING: the checkpoint {path} is damaged ({_first_line(error)}); "
                "the one before it is used.",
                file=sys.stderr,
                flush=True,
            )
        else:
            return path
    if damaged:
        raise config_lib.UsageError(
            f"No checkpoint in {directory} can be read. Choose another --run_dir to begin anew."
        )
    return None


def restore_model(run_dir: str | os.PathLike) -> tuple[keras.Model, dict]:
    """Rebuilds a run's best model in float32, whatever it was trained in.

    The best is the one with the highest macro AP on the validation split; without such a
    split, the newest. Of a run that keeps an average of its weights it is the average.

    Returns:
        The model, uint8 [N, S, S, 3] to float32 logits [N, G], and the facts of the
        run's `config.json` with `image_size`, `genres` and the `step` it is of.

    Raises:
        config.UsageError: the run has no checkpoint yet.
    """
    run = directory_lib.RunDirectory(run_dir)
    config, facts = run.read_config()
    path = find(run.checkpoints, run.best_step())
    if path is None:
        raise config_lib.UsageError(f"--run_dir={run_dir}: the run has no checkpoint yet.")
    network = facts.get("network")
    model = registry.create_model(config, len(facts["genres"]), "float32", network)
    saved_as = "average" if config.weight_average else "model"
    status = tf.train.Checkpoint(**{saved_as: model}).read(str(path / _PREFIX))
    status.expect_partial().assert_existing_objects_matched()
    return model, {**facts, "image_size": config.image_size, "step": int(path.name)}


def _complete(directory: pathlib.Path) -> Sequence[pathlib.Path]:
    """Returns the checkpoints of a directory, oldest first."""
    if not directory.exists():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(paths, key=lambda path: int(path.name))


def _read_all(path: pathlib.Path) -> None:
    """Reads every tensor of a checkpoint, which compares it with its checksum."""
    reader = tf.train.load_checkpoint(str(path / _PREFIX))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
