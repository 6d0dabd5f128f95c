"""Two checkouts of the project beside each other, as before and after a change.

Each turn is a whole process of either checkout's own benchmark. So they need agree on nothing
but the flags that are given and the JSON that is written.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
import tqdm

from trainer import config as config_lib

HERE = pathlib.Path(__file__).parents[2]


def compare(
    there: pathlib.Path, arguments: list[str], rounds: int, here: pathlib.Path = HERE
) -> pd.DataFrame:
    """Runs the benchmark of both checkouts, given by their roots, in turns.

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
        speeds.append(_measure(root, arguments))
    before, after = pd.DataFrame(speeds[::2]), pd.DataFrame(speeds[1::2])
    columns = {"there": before, "here": after, "here / there": after / before}
    table = pd.DataFrame({name: column.median() for name, column in columns.items()})
    return table.reindex(after.columns).dropna()


def _measure(root: pathlib.Path, arguments: list[str]) -> dict[str, float]:
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
