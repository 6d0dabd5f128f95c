"""A model, the average of its weights and its optimizer: made, and given weights to begin with."""

import dataclasses

import keras
import tensorflow as tf

from trainer import config as config_lib, run_data, runtime
from trainer.models import optimizer as optimizer_lib, registry
from trainer.run import checkpoints as checkpoints_lib


@dataclasses.dataclass(frozen=True)
class Learner:
    """A model and what trains it.

    Attributes:
        model: the model.
        average: one like it with the running average of its weights, if there is one.
        optimizer: of the model's weights.
        part: the layer that is trained, by name; empty: the whole model.
    """

    model: keras.Model
    average: keras.Model | None
    optimizer: keras.optimizers.Optimizer
    part: str

    @property
    def trained(self) -> keras.Model:
        """What the training step updates."""
        return self.model.get_layer(self.part) if self.part else self.model

    @property
    def evaluated(self) -> keras.Model:
        """What is evaluated and exported: the average, if there is one."""
        model = self.average or self.model
        return model.get_layer(self.part) if self.part else model

    def facts(self, step: int) -> dict[str, float]:
        """Returns what `metrics.jsonl` has of the optimizer after a step.

        The learning rate of the next step and, where the loss is scaled for float16, its scale
        and how many steps were skipped since the run began, as their gradients overflowed.
        """
        facts = {"learning_rate": float(tf.convert_to_tensor(self.optimizer.learning_rate))}
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            facts["loss_scale"] = float(tf.convert_to_tensor(self.optimizer.dynamic_scale))
            facts["skipped_steps"] = step - int(tf.convert_to_tensor(self.optimizer.iterations))
        return facts


def create_learner(
    config: config_lib.Config, data: run_data.RunData, devices: runtime.Devices
) -> Learner:
    """Returns a model with fresh weights and its optimizer."""
    num_genres, precision = len(data.train.genres), devices.precision
    with devices.strategy.scope():
        model = registry.create_model(config, num_genres, precision)
        average = None
        if config.weight_average:
            average = registry.create_model(config, num_genres, precision)
        optimizer = optimizer_lib.create_optimizer(config, precision, data.steps_per_epoch)
        optimizer.build(model.trainable_variables)
    is_frozen = config.freeze == config_lib.BACKBONE
    return Learner(model, average, optimizer, "head" if is_frozen else "")


def initialize(
    learner: Learner, config: config_lib.Config, genres: list[str], begin_with: str
) -> None:
    """Gives a run without a checkpoint its weights: of another run, or pretrained, or fresh.

    Args:
        learner: to be given weights.
        config: its `pretrained_weights` count.
        genres: of the run.
        begin_with: directory of the other run; empty: none.

    Raises:
        config.UsageError: the weights cannot be had or are of another model.
    """
    model = learner.model
    if begin_with:
        source, facts = checkpoints_lib.restore_model(begin_with)
        if (source.name, facts["genres"]) != (model.name, genres):
            raise config_lib.UsageError(
                f"--init_from={begin_with}: that run is of {source.name} with genres "
                f"{facts['genres']}; this one is of {model.name} with {genres}."
            )
        try:
            registry.copy_weights(source, model)
        except ValueError as error:
            raise config_lib.UsageError(
                f"--init_from={begin_with}: its layers are of other sizes ({error})."
            ) from error
    else:
        registry.load_pretrained_weights(model, config)
    if learner.average:
        registry.copy_weights(model, learner.average)
