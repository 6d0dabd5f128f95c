"""A run in TensorBoard: `tensorboard --logdir=runs`."""

import functools
import pathlib
import shutil

import pandas as pd
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from trainer import config as config_lib
from trainer.reports import scores

_EXTRA = ("images_per_second", "learning_rate", "loss_scale", "skipped_steps")


class TensorBoard:
    """The event files of a run: one for each split.

    They are written anew when a run goes on, from `metrics.jsonl`, so that each step is there
    once. Pictures are those that this process has drawn.
    """

    def __init__(self, directory: pathlib.Path):
        """Removes what an earlier process has left.

        Args:
            directory: for the event files.
        """
        shutil.rmtree(directory, ignore_errors=True)
        self._directory = directory
        self._writer = functools.cache(self._open)

    def write_settings(self, config: config_lib.Config, split: str, run: str) -> None:
        """Writes the settings, for the HParams tab, beside the scores of a split.

        Args:
            config: the settings.
            split: the one by whose scores runs are compared.
            run: name of the run.
        """
        with self._writer(split).as_default(0):
            hparams.hparams(config.to_json(), trial_id=run)

    def write_records(self, records: pd.DataFrame) -> None:
        """Writes the scores of records of `metrics.jsonl`, the constant predictor's among them."""
        names = [f"{prefix}{name}" for prefix in ("", "constant.") for name in scores.METRICS]
        for _, record in records.iterrows():
            with self._writer(record["split"]).as_default(record["step"]):
                for name, value in record.reindex([*names, *_EXTRA]).dropna().items():
                    tf.summary.scalar(name.replace(".", "/"), value)
        self._flush(records["split"].unique())

    def write_picture(self, name: str, png: bytes, split: str, step: int) -> None:
        """Writes a picture of a split at a step."""
        with self._writer(split).as_default(step):
            tf.summary.image(name, tf.io.decode_png(png, channels=3)[None])

    def _open(self, split: str) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self._directory / split))

    def _flush(self, splits) -> None:
        # What a kill would otherwise lose until the run goes on.
        for split in splits:
            self._writer(split).flush()
