"""What is told of a run while it trains: in the terminal, in its directory, in TensorBoard."""

import concurrent.futures
import functools
import pathlib
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from trainer import config as config_lib, flops, learner as learner_lib, run_data, runtime
from trainer.data import pipeline
from trainer.models import registry
from trainer.reports import curves, scores, tables, tensorboard
from trainer.reports.answers import Answers
from trainer.run import directory

_NUM_SAMPLES = 6  # Posters that TensorBoard shows with their predictions.
_SECONDS_BETWEEN_PICTURES = 30
_MOST_READ = 50_000  # Posters whose genres are read before the first epoch, which takes 5 s.


class Answered(NamedTuple):
    """Predictions for a split, and how fast they came."""

    answers: Answers
    images_per_second: float


class RunLog:
    """Tells of a run: every worker in its terminal, the chief in the run directory too.

    Epochs are scored in a thread, one after the other, while the next trains. Left as a
    context, it waits for the thread. Pictures, which take about a second, are drawn every 30
    seconds at most, and at the end.
    """

    def __init__(
        self,
        config: config_lib.Config,
        run: directory.RunDirectory,
        devices: runtime.Devices,
        data: run_data.RunData,
        learner: learner_lib.Learner,
    ):
        """Takes what there is to tell of.

        Args:
            config: the settings.
            run: where the run is kept.
            devices: where it computes.
            data: its splits.
            learner: what it trains.
        """
        self._config, self._run, self._devices, self._data = config, run, devices, data
        self._num_parameters = learner.model.count_params()
        self._flops = flops.training_flops(learner.trained)
        names = [
            tf.config.experimental.get_device_details(gpu).get("device_name", "")
            for gpu in tf.config.list_physical_devices("GPU")
        ]
        # Of one device; the others are taken to be like the first.
        self._peak = flops.peak_flops(names[0], devices.precision) if names else None
        # The best epoch is sought on the validation split, or on the first there is; empty: none.
        self._judge = next((split.name for split in data.evaluated), "")
        self._constants: dict[str, dict[str, float]] = {}
        self._undrawn: tuple[int, Mapping[str, Answered]] | None = None
        self._last_drawn = time.monotonic()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "scores")
        self._pending: concurrent.futures.Future | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, error, *exception) -> None:
        self._thread.shutdown()
        if error is None:
            self._draw()

    @property
    def path(self) -> pathlib.Path:
        """The run directory."""
        return self._run.path

    def describe_run(self) -> None:
        """Prints the model, the devices, the splits and the cache."""
        config, data, devices = self._config, self._data, self._devices
        evaluated = ", ".join(f"{split.num_examples} of {split}" for split in data.evaluated)
        print(
            f"{config.model}, {self._num_parameters:,} parameters, {devices.precision}\n"
            f"strategy {devices.choice.name}: {devices.choice.reason}; "
            f"{devices.num_replicas} replica(s)\n"
            f"{data.train.builder.info.full_name}: {data.train.num_examples} posters to train on, "
            f"{len(data.train.genres)} genres; evaluated on {evaluated or 'nothing else'}\n"
            f"cache {data.cache.name}: {data.cache.reason}",
            flush=True,
        )

    def begin(self, step: int, start_time: float) -> None:
        """Begins with what was recorded up to a step, and prints the lines above the epochs.

        Args:
            step: from which the run goes on.
            start_time: `time.monotonic()` when this process began.
        """
        before = self._run.read_metrics()
        before = before[before["step"] <= step]
        self._skipped = before["skipped_steps"].sum()
        # Had this process done all of the run up to its last evaluation, it would have begun then.
        self._start = start_time - (0 if before.empty else before["seconds"].iloc[-1])
        self._best = before.loc[before["split"] == self._judge, "macro_ap"].max()
        if self._devices.is_chief:
            self._begin_files(step)
        data = self._data
        base_rates = data.train.base_rates
        self._train_constant = {"loss": scores.constant_loss(base_rates, base_rates)}
        for split in data.evaluated:  # Where they are many, they are scored with the first epoch.
            if split.num_examples <= _MOST_READ:
                labels = split.read_labels()
                self._constants[split.name] = scores.compute_constant_metrics(labels, base_rates)
        constants = [self._constants.get(split.name, {}) for split in data.evaluated]
        print(tables.format_header([split.name for split in data.evaluated]))
        print(tables.format_constant(self._train_constant["loss"], constants), flush=True)

    def _begin_files(self, step: int) -> None:
        config, data = self._config, self._data
        self._run.write_config(
            config,
            genres=data.train.genres,
            num_train=data.train.num_examples,
            validation_split=data.validation,
            precision=self._devices.precision,
            replicas=self._devices.num_replicas,
            cache=data.cache.name,
            parameters=self._num_parameters,
            network=registry.read_network(config),
        )
        self._run.keep_metrics_until(step)
        self._tensorboard = tensorboard.TensorBoard(self._run.tensorboard)
        self._tensorboard.write_settings(
            config, self._judge or data.train.name, self._run.path.name
        )
        self._tensorboard.write_records(self._run.read_metrics())
        if data.spec.is_augmented:
            image, variants = pipeline.example_views(data.train, data.spec, curves.NUM_VARIANTS)
            directory.write_atomically(
                self._run.augmentation, curves.draw_variants(image, variants)
            )

    def record(
        self,
        step: int,
        of_training: Mapping[str, float],
        answered: Mapping[str, Answered],
    ) -> None:
        """Begins to score an epoch's predictions, to print the scores and write them to files.

        Args:
            step: after which the model made them.
            of_training: the train split's record: `loss`, `images_per_second` and more.
            answered: name of an evaluated split -> its predictions.
        """
        self.wait()
        self._pending = self._thread.submit(self._record, step, of_training, answered)

    def wait(self) -> None:
        """Waits until what `record` began is done.

        Raises:
            config.UsageError: a file could not be written.
        """
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def _record(
        self,
        step: int,
        of_training: Mapping[str, float],
        answered: Mapping[str, Answered],
    ) -> None:
        data = self._data
        place = {"epoch": -(-step // data.steps_per_epoch), "step": step}
        now = {"seconds": time.monotonic() - self._start}
        records = [
            {
                **place,
                "split": data.train.name,
                **of_training,
                **now,
                "constant": self._train_constant,
            }
        ]
        for split, (answers, speed) in answered.items():
            if split not in self._constants:
                self._constants[split] = scores.compute_constant_metrics(
                    answers.labels, data.train.base_rates
                )
            records.append(
                {
                    **place,
                    "split": split,
                    **scores.compute_metrics(*answers),
                    "images_per_second": speed,
                    **now,
                    "constant": self._constants[split],
                }
            )
        if "skipped_steps" in of_training:  # Of this epoch; they are counted over the whole run.
            records[0]["skipped_steps"] -= int(self._skipped)
            self._skipped = of_training["skipped_steps"]
        if speed := records[0]["images_per_second"]:
            records[0]["flops_per_second"] = speed * self._flops
            if self._peak:
                peak = self._peak * self._devices.num_replicas
                records[0]["share_of_peak"] = records[0]["flops_per_second"] / peak
        judged = next((r["macro_ap"] for r in records if r["split"] == self._judge), -1.0)
        is_best = judged > np.nan_to_num(self._best, nan=-1.0)
        if is_best:
            self._best = judged
        with tqdm.tqdm.external_write_mode():  # The next epoch's bar is there already.
            line = tables.format_epoch(records[0], self._config.epochs, records[1:], is_best)
            print(line, flush=True)
        if self._devices.is_chief:
            self._run.append_metrics(records)
            self._tensorboard.write_records(directory.as_frame(records))
            self._undrawn = step, answered
            if time.monotonic() - self._last_drawn >= _SECONDS_BETWEEN_PICTURES:
                self._draw()

    def _draw(self) -> None:
        """Draws what was recorded since the last pictures."""
        if not self._undrawn:
            return
        (step, answered), self._undrawn = self._undrawn, None
        for split in self._data.evaluated[:1]:
            shown = (array[:_NUM_SAMPLES] for array in answered[split.name].answers)
            picture = curves.draw_answers(self._sample_posters, *shown, self._data.train.genres)
            self._tensorboard.write_picture("posters", picture, split.name, step)
        directory.write_atomically(
            self._run.learning_curves, curves.draw_learning_curves(self._run.read_history())
        )
        self._last_drawn = time.monotonic()

    @functools.cached_property
    def _sample_posters(self) -> np.ndarray:
        """The first posters of the first evaluated split, uint8 [N, S, S, 3]."""
        split = self._data.evaluated[0]
        return pipeline.first_posters(split, self._config.image_size, _NUM_SAMPLES)

    def finish(self) -> None:
        """Prints the best scores, where everything is, and what to do next."""
        self._draw()
        run = self._run
        records = run.read_metrics()
        step, why = run.best_step(), f"the best by macro AP on {self._data.validation}"
        if step is None:
            step, why = records["step"].max(), "the newest: there is no validation split"
        best = records[records["step"] == step]
        summary = tables.make_summary(best).to_string(float_format="{:.4f}".format, na_rep="-")
        files = [path for path in (run.report, run.learning_curves) if path.exists()]
        print(
            f"\nEpoch {best['epoch'].iloc[0]}, step {step}, {why}:\n\n"
            f"{summary}\n\n"
            + "".join(f"  {path}\n" for path in files)
            + f"  tensorboard --logdir={run.path.parent}\n\n"
            f"Next: python -m export --run_dir={run.path} --export_dir=exports/{run.path.name}",
            flush=True,
        )
