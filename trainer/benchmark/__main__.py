"""Where the time goes, on the machine at hand.

    python -m trainer.benchmark --dataset=poster_tfds/imdb --compare=tutorial,keras_fit

Everything is measured in one run, in turns, so that stages can be compared. --checkout puts
another checkout of the project beside this one:

    git worktree add ../before HEAD~1
    python -m trainer.benchmark --dataset=poster_tfds/imdb --checkout=../before
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
import tqdm
from absl import flags

from trainer import command_line, config as config_lib

_SETTINGS = (
    *("dataset", "data_dir", "train_split", "image_size", "batch_size", "precision"),
    *("augment", "augment_on", "randaugment", "mixup", "cutmix", "jit_compile"),
)
_HERE = pathlib.Path(__file__).parents[2]
_COMPARISONS = ("tutorial", "keras_fit")
_TURNS = 3
# What each stage cannot exceed.
_CEILINGS = {
    "parse": "read",
    "decode": "parse",
    "resize": "decode",
    "cold_pipeline": "resize",
    "fill_rows": "resize",
    "step_fed_cold": "step_resident",
    "step_fed_warm": "step_resident",
}
_KEEPS_UP = 0.95

config_lib.define_flags(_SETTINGS)
_SECONDS = flags.DEFINE_float("seconds", 9, "How long to measure each stage.", lower_bound=0)
_COMPARE = flags.DEFINE_list(
    "compare", [], f"What to measure beside it, of: {', '.join(_COMPARISONS)}."
)
_CHECKOUT = flags.DEFINE_string(
    "checkout", None, "Root of another checkout: measure both in turns, a process each."
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def main(arguments: list[str]) -> None:
    del arguments
    for name in _COMPARE.value:
        if name not in _COMPARISONS:
            sys.exit(f"--compare={name}: choose from {', '.join(_COMPARISONS)}.")
    if _CHECKOUT.value:
        compare_checkouts(pathlib.Path(_CHECKOUT.value))
        return
    command_line.import_tensorflow()
    measure(config_lib.from_flags(_SETTINGS))


def compare_checkouts(there: pathlib.Path) -> None:
    """Measures another checkout and this one in turns and prints a table; writes the JSON."""
    from trainer.run import directory

    own = (_CHECKOUT.name, _JSON.name)
    given = [
        flag.serialize()
        for flag in map(flags.FLAGS.__getitem__, flags.FLAGS)
        if flag.present and flag.name not in own
    ]
    table = take_turns(there, given, _TURNS)
    print(table.to_string(float_format="{:.2f}".format))
    if _JSON.value:
        content = json.dumps(table.to_dict("index"), indent=2) + "\n"
        directory.write_atomically(pathlib.Path(_JSON.value), content)


def take_turns(
    there: pathlib.Path, arguments: list[str], rounds: int, here: pathlib.Path = _HERE
) -> pd.DataFrame:
    """Runs the benchmark of both checkouts, given by their roots, in turns, a process each.

    Returns:
        Table of img/s by stage: columns `there`, `here` and `here / there`, medians over the
        rounds. The last is the median of the rounds' ratios. Stages that one of them does not
        have are left out.

    Raises:
        config.UsageError: one of them fails, or is no checkout.
    """
    if not (there / "trainer" / "benchmark").exists():
        raise config_lib.UsageError(
            f"--checkout={there}: there is no trainer/benchmark in it. Name the root of another "
            "checkout of this project (`git worktree add DIR COMMIT` makes one)."
        )
    speeds = []
    for root in tqdm.tqdm([there, here] * rounds, leave=False, disable=not sys.stderr.isatty()):
        speeds.append(_measure_checkout(root, arguments))
    before, after = pd.DataFrame(speeds[::2]), pd.DataFrame(speeds[1::2])
    columns = {"there": before, "here": after, "here / there": after / before}
    table = pd.DataFrame({name: column.median() for name, column in columns.items()})
    return table.reindex(after.columns).dropna()


def _measure_checkout(root: pathlib.Path, arguments: list[str]) -> dict[str, float]:
    """Returns img/s by stage, of one process of a checkout's benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        figures = pathlib.Path(folder) / "figures.json"
        result = subprocess.run(
            # -P: not what is in the current folder, which may be a checkout too.
            [sys.executable, "-P", "-m", "trainer.benchmark", *arguments, f"--json={figures}"],
            env={**os.environ, "PYTHONPATH": str(root.resolve())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise config_lib.UsageError(
                f"The benchmark of {root} ended with {result.returncode}. It printed:\n"
                f"{result.stdout[-2000:]}"
            )
        stages = json.loads(figures.read_text())["stages"]
    return {name: stage["images_per_second"] for name, stage in stages.items()}


def measure(config: config_lib.Config) -> None:
    """Measures all stages in turns, prints them and writes the JSON."""
    import tensorflow as tf

    from poster_tfds import machine
    from trainer import flops as flops_lib, runtime
    from trainer.benchmark import peers, stages as stages_lib
    from trainer.data import splits
    from trainer.models import registry
    from trainer.run import directory

    split = splits.open_split(config.dataset, config.data_dir, config.train_split)
    precision = runtime.choose_precision(config.precision)
    num_genres = len(split.genres)
    create = {
        "tutorial": (peers.tutorial_loop, config),
        "keras_fit": (peers.keras_fit, config, num_genres),
    }
    with contextlib.ExitStack() as stack:
        training = stages_lib.training_stages(split, config, precision)
        training["step_resident"](0)
        memory = {"step_resident": stages_lib.peak_memory()}
        started = {
            create[name][0].__name__: stack.enter_context(peers.Peer(*create[name]))
            for name in _COMPARE.value
        }
        stages = {
            **stages_lib.pipeline_stages(split, config),
            **training,
            **{name: peer.take_turn for name, peer in started.items()},
        }
        measured = stages_lib.take_turns(stages, _SECONDS.value, _TURNS)
        memory.update({name: peer.peak_memory() for name, peer in started.items()})
    flops = stages_lib.matmul_flops(precision, _SECONDS.value / _TURNS)
    model = registry.create_model(config, num_genres, precision)
    limit = flops / flops_lib.training_flops(model)
    figures = {name: turn.figures() for name, turn in measured.items()}
    device = tf.config.list_logical_devices()[-1].device_type
    cores = machine.num_cores()
    peak = stages_lib.peak_memory()
    print(
        f"{split.builder.info.full_name} on {device}, {cores} cores, {precision}, batches of "
        f"{config.batch_size}\n\n{format_table(figures, limit)}\n\n"
        f"A matrix product of {flops / 1e9:.0f} GFLOP/s would train {limit:.1f} img/s.\n"
        f"Peak memory: {peak / 1e9:.2f} GB in all; "
        + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in memory.items())
        + f"\n\n{explain(figures)}"
    )
    if _JSON.value:
        content = {
            "device": device,
            "cores": cores,
            "precision": precision,
            "peak_memory_bytes": peak,
            "peak_memory_bytes_by_stage": memory,
            "matmul_flops": flops,
            "step_limit_images_per_second": limit,
            "stages": figures,
        }
        directory.write_atomically(pathlib.Path(_JSON.value), json.dumps(content, indent=2) + "\n")


def format_table(figures: dict[str, dict[str, float]], limit: float) -> str:
    """Returns `Turn.figures` by stage as a table; `limit` is img/s that the step cannot exceed."""
    table = pd.DataFrame.from_dict(figures, "index")
    speeds = table["images_per_second"]
    ceilings = speeds.reindex(_CEILINGS.values()).set_axis(list(_CEILINGS))
    ceilings["step_resident"] = limit
    shares = (speeds / ceilings).dropna()
    table["of its ceiling"] = pd.Series(
        {name: f"{share:.2f} {_CEILINGS.get(name, 'limit')}" for name, share in shares.items()}
    )
    table.columns = ["img/s", "CPU ms/img", "cores busy", "of its ceiling"]
    formats = {"img/s": "{:.1f}", "CPU ms/img": "{:.2f}", "cores busy": "{:.2f}"}
    formatters = {name: text.format for name, text in formats.items()}
    return table.fillna("").to_string(formatters=formatters)


def explain(figures: dict[str, dict[str, float]]) -> str:
    """Says which stage holds training up and which flag would move it."""

    def of_resident(name):
        return figures[name]["images_per_second"] / figures["step_resident"]["images_per_second"]

    def added_cost(name):
        return figures[name]["cpu_ms_per_image"] - figures[_CEILINGS[name]]["cpu_ms_per_image"]

    dearest = max(("parse", "decode", "resize", "cold_pipeline"), key=added_cost)
    if of_resident("step_fed_warm") < _KEEPS_UP:
        return (
            "The input holds the step up even from the cache: leave out --augment, or give the "
            "process more cores."
        )
    if of_resident("step_fed_cold") < _KEEPS_UP:
        return (
            f"Cold input holds the step up; most of its time is {dearest} "
            f"({added_cost(dearest):.2f} CPU ms a poster). --cache=memory does it once, and "
            "--cache=disk once for many runs."
        )
    return (
        "The training step is the bottleneck, not the input. A --precision that the device "
        "computes in, --jit_compile and --steps_per_call on a GPU, and --strategy=mirrored on "
        "several move it."
    )


if __name__ == "__main__":
    command_line.run(main)
