"""The training loop: `train_and_evaluate`, readable top to bottom."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from trainer import (
    cluster,
    config as config_lib,
    inference,
    learner as learner_lib,
    progress as progress_lib,
    run_data,
    runtime,
    steps,
)
from trainer.models import losses, optimizer as optimizer_lib
from trainer.reports import page, run_log
from trainer.reports.answers import Answers
from trainer.run import checkpoints as checkpoints_lib, directory, state as state_lib, stopping


def train_and_evaluate(
    config: config_lib.Config,
    run_dir: str | os.PathLike,
    resume: bool = True,
    override: bool = False,
    report: bool = True,
) -> bool:
    """Trains a model, evaluates it every few epochs and leaves a run directory.

    A run that was stopped, by whatever means, goes on from its last checkpoint as if it
    had not been. SIGTERM and Ctrl-C end it within about a second, with a checkpoint.

    Args:
        config: the settings.
        run_dir: where the run is kept.
        resume: whether a run that has begun in `run_dir` may go on.
        override: whether it may go on with other settings.
        report: whether to write `report.html` at the end.

    Returns:
        Whether the run is done; it is not where a stop was asked for.

    Raises:
        config.UsageError: the settings cannot be used, the data is damaged, the loss is no
            longer finite, the disk is full or another worker is gone; the message says what to
            do.
    """
    run = directory.RunDirectory(run_dir)
    devices = runtime.open_devices(config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    def finish(log):
        if report:
            page.write_report(run_dir, should_stop=lambda: stop.requested)
        log.finish()

    with contextlib.ExitStack() as stack:
        if devices.is_chief:  # Before it looks at what is there, which another may be changing.
            stack.enter_context(run.held())
        stop = stack.enter_context(stopping.StopRequest())
        stack.enter_context(cluster.lost_workers_told(devices.strategy))
        if config.head_epochs and not run.has_begun():
            print(f"Phase 1 of 2, in {run.head.path}: the head, on the backbone's features.")
            phase = state_lib.Phase(config.head_phase(), run.head, devices, stop)
            if not _train_phase(phase, resume, override):
                return False
            keras.utils.clear_session()  # Layers of the same names come again.
            print("\nPhase 2 of 2: the head and all layers that --freeze does not name.")
        return _train_phase(state_lib.Phase(config, run, devices, stop), resume, override, finish)


def _train_phase(
    phase: state_lib.Phase,
    resume: bool,
    override: bool,
    finish: Callable[[run_log.RunLog], None] = lambda log: None,
) -> bool:
    """Trains until a phase is done, or a stop is asked for; returns whether it is done.

    Args:
        phase: what to train.
        resume: whether it may go on if it has begun.
        override: whether it may go on with other settings.
        finish: what the chief does when all is done.
    """
    config, run, devices = phase.config, phase.run, phase.devices
    start_time = time.monotonic()
    run.check_continues(config, resume, override)
    data = run_data.open_data(config, devices.num_workers)
    run.check_same_data(data.train.genres, data.train.num_examples)
    run.check_same_order(data.cache.name)
    # TensorFlow's own seed must not be 0: then `shuffle` cannot take a tensor as seed.
    keras.utils.set_random_seed(config.seed + 1)
    learner = learner_lib.create_learner(config, data, devices)
    with run_log.RunLog(config, run, devices, data, learner) as log:
        state = _restore(phase, data, learner, log)
        log.describe_run()
        last_step = config.epochs * data.steps_per_epoch
        last_step = min(last_step, config.max_steps or last_step)
        # Features of a frozen backbone take their time, which a head that is done does not need.
        if not (state.is_recorded and (state.step >= last_step or state.has_converged())):
            inputs = run_data.open_inputs(
                config, data, learner.model, devices.strategy, state.step, state.should_stop
            )
            if inputs is None:
                print("Stopped before it trained. The same command goes on.", flush=True)
                return False
            log.begin(state.step, start_time)
            distribute = devices.strategy.distribute_datasets_from_function
            context = Context(
                config,
                data,
                log,
                learner,
                last_step,
                train_step=_make_train_step(config, data, devices, learner, inputs.augment),
                eval_step=steps.make_eval_step(learner.evaluated, devices.strategy),
                train_batches=iter(distribute(inputs.train)),
                eval_batches={name: iter(distribute(b)) for name, b in inputs.evaluated.items()},
            )
            if not _train(context, state):
                return False
        state.prune()
        done = f"all {last_step} steps are done"
        if state.step < last_step:
            done = (
                f"done after step {state.step} of {last_step}, as {config.patience} evaluations "
                f"have brought no higher macro AP on {data.validation}"
            )
        print(f"{run.path}: {done}.", flush=True)
        if devices.is_chief:
            finish(log)
        state.wait_for_workers()  # The others must not leave while the chief is at work.
    return True


@dataclasses.dataclass(frozen=True)
class Context:
    """What the loop needs, made once.

    Attributes:
        config: the settings.
        data: the splits.
        log: what is told of the run.
        learner: what is trained.
        last_step: with which the phase is done at the latest.
        train_step: of `steps.make_train_step`.
        eval_step: of `steps.make_eval_step`.
        train_batches: what `train_step` takes.
        eval_batches: name of a split -> what `eval_step` takes.
    """

    config: config_lib.Config
    data: run_data.RunData
    log: run_log.RunLog
    learner: learner_lib.Learner
    last_step: int
    train_step: Callable[..., dict[str, tf.Tensor]]
    eval_step: Callable[..., dict[str, tf.Tensor]]
    train_batches: Iterator
    eval_batches: dict[str, Iterator]


def _train(context: Context, state: state_lib.RunState) -> bool:
    """Trains and evaluates until a stop is asked for, or the run is done; returns whether it is."""
    if state.step:
        print(f"Going on after step {state.step} of {context.last_step}.", flush=True)
    while not state.stopped:
        epoch, steps_of_epoch = divmod(state.step, context.data.steps_per_epoch)
        is_end_of_epoch = steps_of_epoch == 0
        is_done = state.step >= context.last_step or state.has_converged()
        is_due = is_done or (is_end_of_epoch and epoch % context.config.evaluate_every == 0)
        if state.step and is_due and not state.is_recorded:
            _evaluate(context, state)
            continue
        if is_done:
            return True
        if is_end_of_epoch:
            state.begin_epoch()
        _train_epoch(context, state)
    print(
        f"Stopped after step {state.step} of {context.last_step}, which is saved. The same "
        "command goes on.",
        flush=True,
    )
    return False


def _train_epoch(context: Context, state: state_lib.RunState) -> None:
    """Trains to the end of the epoch or of the run, or until a stop is asked for."""
    config, steps_per_epoch = context.config, context.data.steps_per_epoch
    epoch, num_done = divmod(state.step, steps_per_epoch)
    end = min((epoch + 1) * steps_per_epoch, context.last_step)
    progress = progress_lib.Progress(
        f"epoch {epoch + 1}/{config.epochs}", end - epoch * steps_per_epoch, num_done
    )
    with progress, context.data.train.damage_named():
        while state.step < end and not state.stopped:
            next_save = state.next_save(end)
            count = min(state.steps_per_call, next_save - state.step)
            outputs = context.train_step(context.train_batches, count)
            progress.update(count * config.examples_per_step, count)
            state.advance(count, outputs, save=state.step + count == next_save)
        state.images_per_second = progress.images_per_second
        if not config.deterministic:
            state.share_waited = state.seconds_waited / progress.seconds


def _evaluate(context: Context, state: state_lib.RunState) -> None:
    """Lets the model answer, and begins to score it and its epoch, unless a stop comes before."""
    data = context.data
    answered = {}
    for split in data.evaluated:
        num_steps = math.ceil(split.num_examples / context.config.batch_size)
        with split.damage_named():
            predicted = inference.predict(
                context.eval_step,
                context.eval_batches[split.name],
                num_steps,
                f"evaluating {split}",
                state.should_stop,
            )
        if predicted is None:
            return
        answers = Answers(predicted.labels, predicted.outputs)
        answered[split.name] = run_log.Answered(answers, predicted.images_per_second)
    steps_of_epoch = state.step % data.steps_per_epoch or data.steps_per_epoch
    of_training = {
        "loss": state.loss_sum / steps_of_epoch,
        "images_per_second": state.images_per_second,
        **context.learner.facts(state.step),
        "share_waited": state.share_waited,
    }
    context.log.record(state.step, of_training, answered)
    state.is_recorded = True


def _restore(
    phase: state_lib.Phase,
    data: run_data.RunData,
    learner: learner_lib.Learner,
    log: run_log.RunLog,
) -> state_lib.RunState:
    """Gives a learner the weights to begin with: those of the last checkpoint come first."""
    config, run, devices = phase.config, phase.run, phase.devices
    checkpoints = checkpoints_lib.Checkpoints(
        run.checkpoints,
        learner.model,
        learner.optimizer,
        config.keep_checkpoints,
        devices.is_chief,
        learner.average,
    )

    if devices.is_chief:
        checkpoints.remove_leftovers()

    def describe_batch(step):
        if data.cache.name == "none":
            return "in the order of a stream, which has no Ids"
        return ", ".join(run_data.poster_ids_of_step(config, data, step))

    state = state_lib.RunState(phase, checkpoints, describe_batch, log.wait)
    if not state.step:
        begin_with = str(run.head.path) if config.head_epochs else config.init_from
        learner_lib.initialize(learner, config, data.train.genres, begin_with)
    if config.learning_rate_schedule == "constant":
        # It is restored too; --override wins.
        learner.optimizer.learning_rate = config.learning_rate
    return state


def _make_train_step(
    config: config_lib.Config,
    data: run_data.RunData,
    devices: runtime.Devices,
    learner: learner_lib.Learner,
    augment: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
) -> Callable[..., dict[str, tf.Tensor]]:
    average = None
    if learner.average:
        average = optimizer_lib.WeightAverage(
            learner.evaluated, learner.trained, config.weight_average
        )
    return steps.make_train_step(
        learner.trained,
        learner.optimizer,
        devices.strategy,
        losses.make_loss(config, data.train.base_rates),
        average,
        steps.Computation(
            config.jit_compile, config.accumulate_steps, timed=not config.deterministic
        ),
        augment,
    )
