"""The training loop: `train_and_evaluate`, readable top to bottom."""

import contextlib
import math
import os
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from trainer import (
    checkpoints as checkpoints_lib,
    config as config_lib,
    datasets,
    evaluation,
    input_pipeline,
    inputs as inputs_lib,
    losses,
    models,
    prediction,
    report,
    run_directory,
    runtime,
    steps,
    stopping,
)


def train_and_evaluate(
    config: config_lib.Config,
    run_dir: str | os.PathLike,
    resume: bool = True,
    override: bool = False,
) -> None:
    """Trains a model, evaluates it after every epoch and leaves a run directory.

    A run that was stopped, by whatever means, goes on from its last checkpoint as if it
    had not been. SIGTERM and Ctrl-C end it after the step in hand, with a checkpoint.

    Args:
        config: the settings.
        run_dir: where the run is kept.
        resume: whether a run that has begun in `run_dir` may go on.
        override: whether it may go on with other settings.

    Raises:
        config.UsageError: the settings cannot be used, the data is damaged, the loss is no
            longer finite or the disk is full; the message says what to do.
        runtime.WorkerLostError: another worker is gone.
    """
    start = time.monotonic()
    run = run_directory.RunDirectory(run_dir)
    run.check_continues(config, resume, override)
    choice = runtime.choose_strategy(config.strategy)
    strategy = runtime.create_strategy(choice.name, config.tpu, config.logical_cpus)
    runtime.check_replicas(strategy, config.batch_size, config.jit_compile)
    chief = runtime.is_chief(strategy)
    precision = runtime.choose_precision(config.precision)
    data = inputs_lib.open_data(config)
    run.check_same_data(data.genres, data.num_train)

    with contextlib.ExitStack() as stack:
        if chief:
            stack.enter_context(run.held())
        stop = stack.enter_context(stopping.StopRequest())
        stack.enter_context(runtime.lost_workers_named(strategy))
        # TensorFlow's own seed must not be 0: then `shuffle` cannot take a tensor as seed.
        keras.utils.set_random_seed(config.seed + 1)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        with strategy.scope():
            model, average, optimizer = _create(config, data, precision)
        checkpoints = checkpoints_lib.Checkpoints(
            run.checkpoints, model, optimizer, config.keep_checkpoints, chief, average
        )
        state = checkpoints.restore()
        if not state.step:
            _begin(config, model, average, data.genres)
        runtime.check_same_step(strategy, state.step)
        if config.learning_rate_schedule == "constant":
            optimizer.learning_rate = config.learning_rate  # It is restored too; --override wins.
        print(
            f"{config.model}, {model.count_params():,} parameters, {precision}\n"
            f"strategy {choice.name}: {choice.reason}; {strategy.num_replicas_in_sync} replica(s)\n"
            f"{data.builder.info.full_name}: {data.num_train} posters to train on, "
            f"{len(data.genres)} genres; evaluated on "
            + ", ".join(f"{size} of {split}" for split, size in data.eval_splits.items())
            + f"\ncache {data.cache.name}: {data.cache.reason}",
            flush=True,
        )
        trained, evaluated = model, average or model
        if config.freeze == config_lib.BACKBONE:
            trained, evaluated = (m.get_layer("head") for m in (trained, evaluated))
        inputs = _open_inputs(config, run, strategy, data, model, state.step, stop)
        if inputs is None:
            print("Stopped before it trained. The same command goes on.", flush=True)
            return
        running_average = None
        if average:
            running_average = steps.WeightAverage(evaluated, trained, config.weight_average)
        train_step = steps.make_train_step(
            trained,
            optimizer,
            strategy,
            losses.make_loss(config, data.base_rates, data.num_train),
            running_average,
            config.jit_compile,
        )
        eval_step = steps.make_eval_step(evaluated, strategy)
        if chief:
            checkpoints.remove_leftovers()
            run.write_config(
                config,
                genres=data.genres,
                num_train=data.num_train,
                validation_split=data.validation_split,
                precision=precision,
                replicas=strategy.num_replicas_in_sync,
                cache=data.cache.name,
                parameters=model.count_params(),
            )
            run.keep_metrics_until(state.step)
            report.write_tensorboard(run.tensorboard, run.read_metrics(), anew=True)
            if config.augment and config.freeze != config_lib.BACKBONE:
                _draw_augmentation(config, data, run)
        _Loop(
            config,
            run,
            strategy,
            data,
            inputs,
            train_step,
            eval_step,
            checkpoints,
            state,
            stop,
            start,
        ).run()


def _create(
    config: config_lib.Config, data: inputs_lib.RunData, precision: str
) -> tuple[keras.Model, keras.Model | None, keras.optimizers.Optimizer]:
    """Returns a fresh model, one for the average of its weights if it is wanted, and optimizer."""
    num_genres = len(data.genres)
    model = models.create_model(config, num_genres, precision)
    average = None
    if config.weight_average:
        average = models.create_model(config, num_genres, precision)
    optimizer = steps.create_optimizer(config, precision, data.steps_per_epoch)
    optimizer.build(model.trainable_variables)
    return model, average, optimizer


def _open_inputs(
    config: config_lib.Config,
    run: run_directory.RunDirectory,
    strategy: tf.distribute.Strategy,
    data: inputs_lib.RunData,
    model: keras.Model,
    start_step: int,
    stop: stopping.StopRequest,
) -> inputs_lib.Inputs | None:
    """Returns batches of posters, or of the features that a frozen backbone has for them.

    Or None, if a stop was asked for while those were computed.
    """
    if config.freeze != config_lib.BACKBONE:
        return inputs_lib.poster_inputs(config, data, run, start_step)
    vote = runtime.make_vote(strategy)
    return inputs_lib.feature_inputs(
        config,
        data,
        model.get_layer(config_lib.BACKBONE),
        strategy,
        start_step,
        should_stop=lambda: vote(stop.requested)[0],
    )


def _begin(
    config: config_lib.Config,
    model: keras.Model,
    average: keras.Model | None,
    genres: list[str],
) -> None:
    """Gives a run that has no checkpoint its weights: of another run, or pretrained, or fresh."""
    if config.init_from:
        source, facts = checkpoints_lib.restore_model(config.init_from)
        if (source.name, facts["genres"]) != (model.name, genres):
            raise config_lib.UsageError(
                f"--init_from={config.init_from}: that run is of {source.name} with genres "
                f"{facts['genres']}; this one is of {model.name} with {genres}."
            )
        try:
            models.copy_weights(source, model)
        except ValueError as error:
            raise config_lib.UsageError(
                f"--init_from={config.init_from}: its layers are of other sizes ({error})."
            ) from error
    else:
        models.load_pretrained_weights(model, config)
    if average:
        models.copy_weights(model, average)


class _Loop:
    """Trains epoch after epoch from where a checkpoint left off."""

    def __init__(
        self,
        config: config_lib.Config,
        run: run_directory.RunDirectory,
        strategy: tf.distribute.Strategy,
        data: inputs_lib.RunData,
        inputs: inputs_lib.Inputs,
        train_step: Callable[..., dict[str, tf.Tensor]],
        eval_step: Callable[..., dict[str, tf.Tensor]],
        checkpoints: checkpoints_lib.Checkpoints,
        state: checkpoints_lib.State,
        stop: stopping.StopRequest,
        start: float,
    ):
        self._config = config
        self._run = run
        self._data = data
        self._checkpoints = checkpoints
        self._stop_request = stop
        self._vote = runtime.make_vote(strategy)
        self._num_replicas = strategy.num_replicas_in_sync
        self._chief = runtime.is_chief(strategy)
        self._last_step = config.epochs * data.steps_per_epoch
        if config.max_steps:
            self._last_step = min(self._last_step, config.max_steps)

        self._step = state.step
        self._answers = [(state.labels, state.logits)]  # Of the epoch so far.
        records = [record for record in run.read_metrics() if record["step"] <= state.step]
        self._is_recorded = state.step in {record["step"] for record in records}
        # Had this process done all of the run up to its last evaluation, it would have begun then.
        self._start = start - (records[-1]["seconds"] if records else 0)
        self._images_per_second = None  # Unless this process trains.
        self._stopped = False
        self._last_save = time.monotonic()

        self._train_step = train_step
        self._eval_step = eval_step
        distribute = strategy.distribute_datasets_from_function
        self._train_batches = iter(distribute(inputs.train))
        self._eval_batches = {
            split: iter(distribute(dataset)) for split, dataset in inputs.evaluated.items()
        }

    def run(self) -> None:
        """Trains and evaluates until the run is done or a stop is asked for."""
        if self._step:
            print(f"Going on after step {self._step} of {self._last_step}.", flush=True)
        while not self._stopped:
            at_end_of_epoch = self._step % self._data.steps_per_epoch == 0
            is_done = self._step >= self._last_step
            if self._step and (at_end_of_epoch or is_done) and not self._is_recorded:
                self._evaluate()
                continue
            if is_done:
                print(f"{self._run.path}: all {self._last_step} steps are done.", flush=True)
                return
            if at_end_of_epoch:
                self._answers = []
            self._train_epoch()
        print(
            f"Stopped after step {self._step} of {self._last_step}, which is saved. The same "
            "command goes on.",
            flush=True,
        )

    def _train_epoch(self) -> None:
        """Trains to the end of the epoch or of the run, and saves when it is time."""
        config, steps_per_epoch = self._config, self._data.steps_per_epoch
        epoch = self._step // steps_per_epoch
        end = min((epoch + 1) * steps_per_epoch, self._last_step)
        every = config.checkpoint_every_steps or steps_per_epoch
        outputs = []
        start = time.perf_counter()
        num_before = self._num_answers()
        progress = report.Progress(
            f"epoch {epoch + 1}/{config.epochs}",
            end - epoch * steps_per_epoch,
            done=self._step % steps_per_epoch,
        )
        with progress, datasets.damage_named(self._data.builder, config.train_split):
            while self._step < end and not self._stopped:
                next_save = min(end, (self._step // every + 1) * every)
                count = min(config.steps_per_call, next_save - self._step)
                outputs.append((self._step, self._train_step(self._train_batches, count)))
                self._step += count
                self._is_recorded = False
                progress.update(len(outputs[-1][1]["weight"]), count)
                # One call late, so that the device has its next work while Python looks.
                self._check_finite(outputs[-2:-1])
                is_due = time.monotonic() - self._last_save > config.checkpoint_every_seconds
                self._stopped, is_due = self._vote(
                    self._stop_request.requested, self._chief and is_due
                )
                if self._step == next_save or self._stopped or is_due:
                    self._check_finite(outputs)
                    self._answers.append(steps.collect([output for _, output in outputs]))
                    outputs = []
                    self._save()
        seconds = time.perf_counter() - start
        self._images_per_second = (self._num_answers() - num_before) / seconds

    def _should_stop(self) -> bool:
        self._stopped, _ = self._vote(self._stop_request.requested, False)
        return self._stopped

    def _save(self) -> None:
        labels, logits = self._all_answers()
        self._checkpoints.save(self._step, labels, logits)
        if self._chief:
            self._checkpoints.prune(self._run.best_step())
        self._last_save = time.monotonic()

    def _evaluate(self) -> None:
        """Scores the epoch and the model as it stands, unless a stop comes before."""
        predicted = {
            self._config.train_split: prediction.Predicted(
                *self._all_answers(), self._images_per_second
            )
        }
        for split, size in self._data.eval_splits.items():
            with datasets.damage_named(self._data.builder, split):
                predicted[split] = prediction.predict(
                    self._eval_step,
                    self._eval_batches[split],
                    math.ceil(size / self._config.batch_size),
                    f"evaluating {split}",
                    self._should_stop,
                )
            if predicted[split] is None:
                return
        epoch = math.ceil(self._step / self._data.steps_per_epoch)
        records = [
            {
                "epoch": epoch,
                "step": self._step,
                "split": split,
                **evaluation.compute_metrics(answers.labels, answers.outputs),
                "images_per_second": answers.images_per_second,
                "seconds": time.monotonic() - self._start,
                "constant": evaluation.compute_constant_metrics(
                    answers.labels, self._data.base_rates
                ),
            }
            for split, answers in predicted.items()
        ]
        if self._chief:
            self._run.append_metrics(records)
            report.write_tensorboard(self._run.tensorboard, records)
            run_directory.write_atomically(
                self._run.learning_curves, report.draw_learning_curves(self._run.read_metrics())
            )
            self._checkpoints.prune(self._run.best_step())
        self._is_recorded = True
        speed = f", {self._images_per_second:.0f} img/s" if self._images_per_second else ""
        print(
            f"\nepoch {epoch}/{self._config.epochs}, step {self._step}{speed}\n"
            f"{report.format_records(records)}",
            flush=True,
        )

    def _all_answers(self) -> tuple[np.ndarray, np.ndarray]:
        labels, logits = (np.concatenate(parts) for parts in zip(*self._answers, strict=True))
        self._answers = [(labels, logits)]
        return labels, logits

    def _num_answers(self) -> int:
        return sum(len(labels) for labels, _ in self._answers)

    def _check_finite(self, outputs: list[tuple[int, dict[str, tf.Tensor]]]) -> None:
        """Stops the run at the first step whose loss or gradients were not finite."""
        for first_step, output in outputs:
            finite = output["finite"].numpy()
            if not finite.all():
                step = first_step + int(np.argmin(finite)) // self._num_replicas + 1
                posters = "in the order of the data service"
                if not self._config.data_service:
                    ids = input_pipeline.poster_ids_of_step(
                        self._data.builder,
                        self._config.train_split,
                        step=step,
                        batch_size=self._config.batch_size,
                        shuffle_buffer=self._data.num_train
                        if self._config.freeze == config_lib.BACKBONE
                        else self._config.shuffle_buffer,
                        seed=self._config.seed,
                    )
                    posters = ", ".join(ids)
                raise config_lib.UsageError(
                    f"The loss or its gradients are not finite at step {step}. Its batch: "
                    f"{posters}.\nThe checkpoints in {self._run.checkpoints} are from "
                    "before it. A lower --learning_rate may help; give it with --override to go "
                    "on. Or begin anew in another --run_dir, with --precision=float32."
                )


def _draw_augmentation(
    config: config_lib.Config, data: inputs_lib.RunData, run: run_directory.RunDirectory
):
    image, variants = input_pipeline.example_variants(
        data.builder,
        config.train_split,
        image_size=config.image_size,
        seed=config.seed,
        augment=config.augmentations,
        count=report.NUM_VARIANTS,
    )
    run_directory.write_atomically(run.augmentation, report.draw_variants(image, variants))
