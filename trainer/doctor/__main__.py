"""Looks whether this machine trains rightly and fast: the first thing to do on a new one.

    python -m trainer.doctor --json=doctor.json

It says what the machine is, tries what training needs, and recommends flags for it. `synthetic`
is built in --data_dir if it is not there. What needs a GPU is left out where there is none.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import textwrap

from absl import flags

from trainer import command_line, config as config_lib, presets

_SETTINGS = ("dataset", "data_dir", "train_split", "precision")
_TIMED = "speed of the step"

config_lib.define_flags(_SETTINGS)
flags.FLAGS.set_default("dataset", "poster_tfds/synthetic")
_PRESET = flags.DEFINE_enum(
    "preset", "compact", presets.PRESETS, "Model and settings whose step is timed."
)
_MINUTES = flags.DEFINE_float(
    "minutes", 5, "After so many minutes no check is begun.", lower_bound=0
)
_CHECKS = flags.DEFINE_list(
    "checks",
    [],
    "Checks to run, by the beginning of their names, as replicas,overflow; empty: all.",
)
_SECONDS = flags.DEFINE_float("seconds", 4, "How long to time each kind of step.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write what was found to.")


def main(arguments: list[str]) -> None:
    """Describes the machine, runs the checks and ends with 1 if one failed."""
    del arguments
    command_line.import_tensorflow()
    import tensorflow as tf

    from trainer import runtime
    from trainer.doctor import findings as findings_lib, machine
    from trainer.run import directory

    config = config_lib.from_flags(_SETTINGS)
    # Replicas on all GPUs or, without any, on two halves of the CPU.
    logical_cpus = 1 if tf.config.list_physical_devices("GPU") else 2
    strategy = runtime.create_strategy("mirrored", logical_cpus=logical_cpus)
    checks = _make_checks(config, runtime.choose_precision(config.precision), strategy)
    checks = findings_lib.choose(checks, _CHECKS.value)
    facts = machine.describe(config.precision)
    for name, fact in facts.items():
        _print_row(name, "", fact)
    print(flush=True)
    found = findings_lib.run_checks(
        checks,
        60 * _MINUTES.value,
        lambda name, finding: _print_row(name, finding.outcome, finding.detail),
    )
    outcomes = [finding.outcome for finding in found.values()]
    is_well = findings_lib.FAILED not in outcomes
    recommended = [flag for finding in found.values() for flag in finding.flags]
    kinds = (findings_lib.PASSED, findings_lib.FAILED, findings_lib.LEFT_OUT)
    counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds)
    if not is_well:
        recommended = []
        advice = "none before what failed is mended"
    elif _TIMED not in found or found[_TIMED].outcome == findings_lib.LEFT_OUT:
        advice = "none: the step was not timed"
    else:
        advice = " ".join(recommended) or "none: the defaults suit"
    print(f"\n{counts}\nRecommended flags: {advice}")
    if _JSON.value:
        content = {
            "machine": facts,
            "findings": {name: finding._asdict() for name, finding in found.items()},
            "flags": recommended,
        }
        directory.write_atomically(pathlib.Path(_JSON.value), json.dumps(content, indent=2) + "\n")
    if not is_well:
        sys.exit(1)


def _make_checks(config: config_lib.Config, precision: str, strategy) -> dict:
    """Returns all checks by name, in the order in which they are run."""
    from trainer.data import splits
    from trainer.doctor import checks, speeds

    split = splits.open_split(config.dataset, config.data_dir, config.train_split)
    timed = dataclasses.replace(config, **presets.PRESETS[_PRESET.value])
    partial = functools.partial

    def of_presets(title, check, *arguments):
        names = sorted(presets.PRESETS)
        return {f"{title}: {name}": partial(check, name, *arguments) for name in names}

    return {
        "disk": partial(speeds.check_disk, split),
        "overflow in float16": checks.check_overflow,
        "replicas": partial(checks.check_replicas, strategy),
        **of_presets("kernels exist", checks.check_kernels_exist, precision),
        **of_presets("kernels run", checks.check_kernels_run, precision),
        _TIMED: partial(speeds.check_step, split, timed, precision, _SECONDS.value),
        "speed of the input": partial(speeds.check_input, split, timed, precision, _SECONDS.value),
        **of_presets("arithmetic", checks.check_arithmetic),
        "peak memory": partial(speeds.check_memory, split, timed, precision),
        "largest batch": partial(speeds.check_batch_size, split, timed, precision),
        # The last: TensorFlow stays deterministic, and slower.
        "determinism": partial(checks.check_determinism, precision),
    }


def _print_row(name: str, outcome: str, detail: str) -> None:
    start = f"{name:34} {outcome:8} "
    indent = " " * len(start)
    print(textwrap.fill(detail, 100, initial_indent=start, subsequent_indent=indent), flush=True)


if __name__ == "__main__":
    command_line.run(main)
