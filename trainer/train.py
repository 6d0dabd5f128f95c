"""The training loop: `train_and_evaluate`, readable top to bottom."""

import math
import os
import time

import keras
import numpy as np
import tensorflow as tf

from trainer import (
    checkpoints as checkpoints_lib,
    config as config_lib,
    evaluation,
    input_pipeline,
    models,
    report,
    run_directory,
    runtime,
)


def train_and_evaluate(
    config: config_lib.Config, run_dir: str | os.PathLike, resume: bool = True
) -> None:
    """Trains a model, evaluates it after every epoch and leaves a run directory.

    A run that was stopped goes on from its last checkpoint.

    Args:
        config: the settings.
        run_dir: where the run is kept.
        resume: whether a run that has begun in `run_dir` may go on.

    Raises:
        config.UsageError: the settings cannot be used; the message says what to do.
    """
    run = run_directory.RunDirectory(run_dir)
    run.check_continues(config, resume)
    strategy = runtime.create_strategy(config.strategy, config.tpu, config.logical_cpus)
    chief = runtime.is_chief(strategy)
    precision = runtime.choose_precision(config.precision)
    builder = input_pipeline.open_dataset(config.dataset, config.data_dir)
    genres = input_pipeline.genre_names(builder)
    num_train = input_pipeline.num_examples(builder, config.train_split)
    num_test = input_pipeline.num_examples(builder, config.test_split)
    cache = input_pipeline.choose_cache(
        config.cache, builder, config.train_split, config.image_size
    )
    if config.jit_compile and strategy.num_replicas_in_sync > 1:
        raise config_lib.UsageError(
            f"--jit_compile is for one replica; here are {strategy.num_replicas_in_sync}. Leave it "
            "out, or choose --strategy=one_device."
        )

    # TensorFlow's own seed must not be 0: then `shuffle` cannot take a tensor as seed.
    keras.utils.set_random_seed(config.seed + 1)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope():
        model = models.create_model(config.model, config.image_size, len(genres), precision)
        optimizer = create_optimizer(config.learning_rate, precision)
        optimizer.build(model.trainable_variables)
        checkpoints = checkpoints_lib.Checkpoints(run.checkpoints, model, optimizer, chief)
    step = checkpoints.restore()
    steps_per_epoch = math.ceil(num_train / config.batch_size)
    last_step = config.epochs * steps_per_epoch
    if config.max_steps:
        last_step = min(last_step, config.max_steps)
    print(
        f"{config.model}, {model.count_params():,} parameters, {precision}, "
        f"{strategy.num_replicas_in_sync} replica(s)\n"
        f"{builder.info.full_name}: {num_train} posters to train on, {num_test} to test on, "
        f"{len(genres)} genres\ncache {cache.name}: {cache.reason}"
    )
    if chief:
        run.write_config(
            config,
            genres=genres,
            precision=precision,
            replicas=strategy.num_replicas_in_sync,
            cache=cache.name,
            parameters=model.count_params(),
        )
        run.keep_metrics_until(step)
    if step >= last_step:
        print(f"Nothing is left to do: {run.path} has done {step} steps of {last_step}.")
        return
    if step:
        print(f"Going on after step {step} of {last_step}.")

    if chief and config.augment:
        image, variants = input_pipeline.example_variants(
            builder,
            config.train_split,
            image_size=config.image_size,
            seed=config.seed,
            augment=config.augmentations,
            count=report.NUM_VARIANTS,
        )
        run_directory.write_atomically(run.augmentation, report.draw_variants(image, variants))

    train_batches, test_batches = (
        iter(strategy.experimental_distribute_dataset(dataset))
        for dataset in (
            input_pipeline.train_dataset(
                builder,
                config.train_split,
                image_size=config.image_size,
                batch_size=config.batch_size,
                cache=cache.name,
                shuffle_buffer=config.shuffle_buffer,
                seed=config.seed,
                start_step=step,
                augment=config.augmentations,
                cache_file=run.new_cache_file() if cache.name == "disk" else "",
            ),
            input_pipeline.eval_dataset(
                builder,
                config.test_split,
                image_size=config.image_size,
                batch_size=config.batch_size,
                # Read once an epoch, it need not take the room that decoded posters do.
                cache="none" if cache.name == "none" else "encoded",
            ),
        )
    )
    train_step = make_train_step(model, optimizer, strategy, config.jit_compile)
    eval_step = evaluation.make_eval_step(model, strategy)
    base_rates = input_pipeline.base_rates(builder, config.train_split)

    while step < last_step:
        epoch = step // steps_per_epoch + 1
        steps = min(epoch * steps_per_epoch, last_step) - step
        predicted = {
            config.train_split: _run_steps(
                train_step,
                train_batches,
                steps,
                f"epoch {epoch}/{config.epochs}",
                config.steps_per_call,
            ),
            config.test_split: _run_steps(
                eval_step,
                test_batches,
                math.ceil(num_test / config.batch_size),
                f"evaluating {config.test_split}",
            ),
        }
        step += steps
        records = [
            {
                "epoch": epoch,
                "step": step,
                "split": split,
                **evaluation.compute_metrics(labels, logits),
                "images_per_second": len(labels) / seconds,
                "constant": evaluation.compute_constant_metrics(labels, base_rates),
            }
            for split, (labels, logits, seconds) in predicted.items()
        ]
        if chief:
            run.append_metrics(records)
            report.write_tensorboard(run.tensorboard, records)
            run_directory.write_atomically(
                run.learning_curves, report.draw_learning_curves(run.read_metrics())
            )
        checkpoints.save(step)
        seconds = sum(seconds for _, _, seconds in predicted.values())
        print(
            f"\nepoch {epoch}/{config.epochs}, step {step}, {seconds:.1f} s, "
            f"{records[0]['images_per_second']:.0f} img/s\n{report.format_records(records)}",
            flush=True,
        )


def create_optimizer(learning_rate: float, precision: str) -> keras.optimizers.Optimizer:
    """Returns Adam, which scales the loss where gradients are float16."""
    optimizer = keras.optimizers.Adam(learning_rate)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def make_train_step(
    model: keras.Model, optimizer, strategy: tf.distribute.Strategy, jit_compile: bool = False
):
    """Returns a compiled function that trains on the next global batches of an iterator.

    It gives the labels and the logits [B, G] of all replicas together, and weights [B]
    of one.
    """

    def replica_step(batch):
        context = tf.distribute.get_replica_context()
        # The last batch of an epoch may be spread unevenly over the replicas, so the
        # mean is taken over the examples that there are.
        local_size = tf.cast(tf.shape(batch["genres"])[0], tf.float32)
        global_size = context.all_reduce(tf.distribute.ReduceOp.SUM, local_size)
        with tf.GradientTape() as tape:
            logits = model(batch["image"], training=True)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(batch["genres"], logits)
            loss = tf.reduce_sum(tf.reduce_mean(losses, axis=-1)) / global_size
            scaled_loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _agree_on_overflow(gradients, context)
        optimizer.apply(gradients, model.trainable_variables)
        weight = tf.ones_like(batch["genres"][:, 0])
        return {"labels": batch["genres"], "logits": logits, "weight": weight}

    return evaluation.make_step(replica_step, strategy, jit_compile)


def _agree_on_overflow(gradients: list[tf.Tensor], context) -> list[tf.Tensor]:
    """Makes gradients non-finite on every replica if they are on any.

    Keras's LossScaleOptimizer looks at its own replica's gradients before they are
    summed, and would apply the sum with another replica's infinity in it.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
    overflows = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(~finite, tf.float32))
    poison = tf.where(overflows > 0, np.nan, 0.0)
    return [gradients[0] + tf.cast(poison, gradients[0].dtype), *gradients[1:]]


def _run_steps(
    step, batches, num_steps: int, name: str, steps_per_call: int = 1
) -> tuple[np.ndarray, np.ndarray, float]:
    """Runs steps and returns labels and logits [N, G] and the seconds that it took."""
    start = time.perf_counter()
    outputs = []
    with report.Progress(name, num_steps) as progress:
        for done in range(0, num_steps, steps_per_call):
            steps = min(steps_per_call, num_steps - done)
            outputs.append(step(batches, steps))
            progress.update(len(outputs[-1]["weight"]), steps)
    labels, logits = evaluation.collect(outputs)
    return labels, logits, time.perf_counter() - start
