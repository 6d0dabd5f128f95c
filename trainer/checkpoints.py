"""Save and restore the state of a run."""

import atexit
import os
import shutil
import tempfile

import keras
import tensorflow as tf

from trainer import config as config_lib, models, run_directory

_KEPT = 2


class Checkpoints:
    """The checkpoints of a run: model, optimizer with its loss scale, and step."""

    def __init__(self, directory: os.PathLike, model: keras.Model, optimizer, chief: bool = True):
        """Watches `directory`; workers other than the chief save where nobody looks.

        All workers must save together, since synchronised variables are read by all.
        """
        self._directory = os.fspath(directory)
        if not chief:
            directory = tempfile.mkdtemp(prefix="worker-checkpoints-")
            atexit.register(shutil.rmtree, directory, ignore_errors=True)
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=self._step)
        self._manager = tf.train.CheckpointManager(
            checkpoint, os.fspath(directory), max_to_keep=_KEPT
        )

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one, and returns its step."""
        if newest := tf.train.latest_checkpoint(self._directory):
            status = self._manager.checkpoint.restore(newest)
            status.assert_existing_objects_matched()
        return int(self._step.numpy())

    def save(self, step: int) -> None:
        """Saves the state after `step` steps."""
        self._step.assign(step)
        self._manager.save(checkpoint_number=step)


def restore_model(run_dir: str | os.PathLike) -> tuple[keras.Model, dict]:
    """Rebuilds the newest model of a run in float32, whatever it was trained in.

    Returns:
        The model, uint8 [N, S, S, 3] to float32 logits [N, G], and the facts of the
        run's `config.json` with `image_size`, `genres` and `checkpoint`.

    Raises:
        config.UsageError: the run has no checkpoint yet.
    """
    run = run_directory.RunDirectory(run_dir)
    config, facts = run.read_config()
    path = tf.train.latest_checkpoint(os.fspath(run.checkpoints))
    if path is None:
        raise config_lib.UsageError(f"--run_dir={run_dir}: the run has no checkpoint yet.")
    model = models.create_model(config.model, config.image_size, len(facts["genres"]), "float32")
    status = tf.train.Checkpoint(model=model).restore(path)
    status.expect_partial().assert_existing_objects_matched()
    return model, {**facts, "image_size": config.image_size, "checkpoint": path}
