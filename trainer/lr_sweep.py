"""A learning rate range test: a short training whose rate rises from step to step.

Section 3.3 of https://arxiv.org/abs/1506.01186 (Smith, Cyclical Learning Rates, 2017).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from trainer import config as config_lib, learner as learner_lib, run_data, runtime, steps
from trainer.models import losses as losses_lib
from trainer.progress import Progress

_MOMENTUM = 0.9  # Of the running mean of the loss: about 10 steps.
_DIVERGED = 4.0  # How many times its lowest value it may reach.
_FIRST = 10  # The running mean is of too few before this step to speak of a slope.


class Sweep(NamedTuple):
    """What a range test has seen, step by step."""

    rates: np.ndarray  # [S], rising.
    losses: np.ndarray  # [S], binary cross-entropy of the batch before it was learned from.
    smoothed: np.ndarray  # [S], their running mean.

    @property
    def lowest(self) -> int:
        return int(np.nanargmin(self.smoothed))

    @property
    def proposed(self) -> float:
        """The rate at which the smoothed loss falls most steeply over the rate's logarithm."""
        until = self.lowest + 1
        slopes = np.gradient(self.smoothed[:until], np.log(self.rates[:until]))
        return self.rates[_FIRST + np.argmin(slopes[_FIRST:])]


def sweep(config: config_lib.Config, rates: Sequence[float]) -> Sweep:
    """Trains a step at each rate, until the loss diverges; leaves nothing behind.

    The model, its first weights, the batches and their changes are those of a run with these
    settings. The schedule and the average of the weights are left out.

    Raises:
        config.UsageError: the settings cannot be used, or the loss does not fall at any rate.
    """
    if config.head_epochs:
        raise config_lib.UsageError(
            f"--head_epochs={config.head_epochs}: two phases have a rate each. Add "
            f"--head_epochs=0, and --freeze={config_lib.BACKBONE} --augment=flip for the head's, "
            "or --init_from=RUN with the run of a head for that of what is trained after it."
        )
    config = dataclasses.replace(
        config,
        **{"learning_rate_schedule": "constant", "weight_average": 0.0, "patience": 0},
        **{"validation_split": "", "test_split": ""},
    )
    devices = runtime.open_devices(config)
    data = run_data.open_data(config)
    keras.utils.set_random_seed(config.seed + 1)  # As in a run.
    learner = learner_lib.create_learner(config, data, devices)
    learner_lib.initialize(learner, config, data.train.genres, config.init_from)
    losses, smoothed, mean = [], [], 0.0
    with data.train.damage_named():
        inputs = run_data.open_inputs(config, data, learner.model, devices.strategy)
        train_step = steps.make_train_step(
            *(learner.trained, learner.optimizer, devices.strategy),
            losses_lib.make_loss(config, data.train.base_rates),
            computation=steps.Computation(config.jit_compile, config.accumulate_steps),
            augment=inputs.augment,
        )
        batches = iter(devices.strategy.distribute_datasets_from_function(inputs.train))
        with Progress("learning rates", len(rates)) as progress:
            for rate in rates:
                learner.optimizer.learning_rate = rate
                losses.append(float(train_step(batches)["loss"][0]))
                mean = _MOMENTUM * mean + (1 - _MOMENTUM) * losses[-1]
                smoothed.append(mean / (1 - _MOMENTUM ** len(losses)))
                progress.update(config.examples_per_step)
                if not smoothed[-1] <= _DIVERGED * min(smoothed):  # Neither if it is not a number.
                    break
    found = Sweep(np.array(rates[: len(losses)]), np.array(losses), np.array(smoothed))
    if not np.isfinite(losses[0]) or found.lowest < _FIRST:
        raise config_lib.UsageError(
            f"The loss does not fall from the first rate on, {rates[0]:g}: begin with a lower "
            "--lowest."
        )
    return found
