"""Command line of the trainer.

    python -m trainer --dataset=poster_tfds/imdb --data_dir=data --run_dir=runs/imdb

Flags become a `Config`; everything else is in `train.train_and_evaluate`.
"""

import os
import sys

from absl import app, flags

from trainer import config as config_lib, presets, startup

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Where the run is kept.", required=True)
_PRESET = flags.DEFINE_enum(
    "preset",
    "compact",
    presets.PRESETS,
    "Settings that belong together: a model and how to train it, in place of the defaults below "
    "(those of `reference`). Flags change single ones.",
)
_RESUME = flags.DEFINE_bool(
    "resume", True, "Go on from the last checkpoint if --run_dir holds a run."
)
_OVERRIDE = flags.DEFINE_bool(
    "override", False, "Go on even if --run_dir holds a run with other settings."
)
_VERBOSE = flags.DEFINE_bool("verbose", False, "Show TensorFlow's own messages.")


config_lib.define_flags()


def main(argv: list[str]) -> None:
    """Trains as the flags say; a user's mistake ends in one message."""
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    startup.import_tensorflow(_VERBOSE.value)
    from trainer import runtime, train  # Imports TensorFlow, which --help need not wait for.

    try:
        config = config_lib.from_flags(preset=presets.PRESETS[_PRESET.value])
        train.train_and_evaluate(
            config, _RUN_DIR.value, resume=_RESUME.value, override=_OVERRIDE.value
        )
    except config_lib.UsageError as error:
        sys.exit(str(error))
    except runtime.WorkerLostError as error:
        print(
            f"A worker is gone ({str(error).splitlines()[0]}). Start it again; this one goes on "
            "from the last checkpoint when all are there.",
            file=sys.stderr,
            flush=True,
        )
        # TensorFlow cannot leave a broken cluster: a new process must join it.
        os.execv(sys.executable, [sys.executable, "-m", "trainer", *sys.argv[1:]])


if __name__ == "__main__":
    app.run(main)
