"""Trains a model and leaves a run directory.

    python -m trainer --dataset=poster_tfds/imdb --data_dir=data --run_dir=runs/imdb

Posters stream from a dataset that `tfds build` has built. The model is evaluated after every
epoch; the same command goes on where an earlier one stopped.
"""

from absl import flags

from trainer import command_line, config as config_lib, presets

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Where the run is kept.", required=True)
_PRESET = presets.define_flag(
    "Settings that belong together: a model and how to train it, in place of the defaults below "
    "(those of `reference`). Flags change single ones."
)
_RESUME = flags.DEFINE_bool(
    "resume", True, "Go on from the last checkpoint if --run_dir holds a run."
)
_OVERRIDE = flags.DEFINE_bool(
    "override", False, "Go on even if --run_dir holds a run with other settings."
)
_REPORT = flags.DEFINE_bool(
    "report", True, "Write report.html at the end: how good the best model is, genre by genre."
)

config_lib.define_flags()


def main(arguments: list[str]) -> None:
    """Trains as the flags say."""
    del arguments
    command_line.import_tensorflow()
    from trainer import train  # Imports TensorFlow, which --help need not wait for.

    train.train_and_evaluate(
        presets.config_from_flags(_PRESET),
        _RUN_DIR.value,
        resume=_RESUME.value,
        override=_OVERRIDE.value,
        report=_REPORT.value,
    )


if __name__ == "__main__":
    command_line.run(main)
