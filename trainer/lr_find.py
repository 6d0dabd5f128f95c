"""Proposes a learning rate: trains some hundred steps, each with a higher one.

    python -m trainer.lr_find --preset=compact --dataset=poster_tfds/imdb --data_dir=data

The flags are those of the training, so that the proposal is for its model, batches and losses.
The rate rises exponentially from --lowest to --highest, or until the loss diverges. Proposed is
the rate at which the smoothed loss falls most steeply. There is no run directory: nothing but
the picture is written.
"""

import pathlib

import numpy as np
from absl import flags

from trainer import command_line, config as config_lib, presets

_PRESET = presets.define_flag("Settings that belong together, as of the training.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps to train, one at each rate.", lower_bound=30)
_LOWEST = flags.DEFINE_float("lowest", 1e-6, "Rate of the first step.", lower_bound=1e-12)
_HIGHEST = flags.DEFINE_float("highest", 1.0, "Rate of the last step.", lower_bound=1e-12)
_PLOT = flags.DEFINE_string("plot", "lr_find.png", "PNG to write: the loss against the rate.")

config_lib.define_flags()


def main(arguments: list[str]) -> None:
    del arguments
    if _LOWEST.value >= _HIGHEST.value:
        raise config_lib.UsageError(
            f"--lowest={_LOWEST.value:g} is not below --highest={_HIGHEST.value:g}."
        )
    command_line.import_tensorflow()
    from trainer import lr_sweep
    from trainer.reports import curves
    from trainer.run import directory

    config = presets.config_from_flags(_PRESET)
    rates = np.geomspace(_LOWEST.value, _HIGHEST.value, _STEPS.value)
    sweep = lr_sweep.sweep(config, rates.tolist())
    picture = curves.draw_lr_sweep(*sweep, sweep.proposed)
    directory.write_atomically(pathlib.Path(_PLOT.value), picture)
    last = len(sweep.rates) - 1
    if last + 1 < len(rates):
        end = f"It diverged at {sweep.rates[last]:.1e}."
    elif sweep.lowest == last:
        end = "It was still falling at the end: a higher --highest would say more."
    else:
        end = f"It did not diverge until {sweep.rates[last]:.1e}."
    print(
        f"The smoothed loss is lowest at a learning rate of {sweep.rates[sweep.lowest]:.1e}: "
        f"{sweep.smoothed[sweep.lowest]:.4f}. {end}\n"
        f"Proposed, where it falls most steeply: --learning_rate={sweep.proposed:.1e}\n\n"
        f"Wrote {_PLOT.value}"
    )


if __name__ == "__main__":
    command_line.run(main)
