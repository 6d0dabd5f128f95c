"""A trial's training: a process of its own, followed by the records that it leaves."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

from trainer.reports import scores
from trainer.run import directory
from trainer.search import trials as trials_lib

OUTPUT = "output.txt"  # In a trial's run directory: what it printed.
_POLL_SECONDS = 0.5
_LINES_SHOWN = 12


class FailedError(Exception):
    """A training has failed; the message has what it printed last."""


def train(
    search: trials_lib.Search,
    trial: trials_lib.Trial,
    flags: Sequence[str],
    run_dir: pathlib.Path,
    should_stop: Callable[[], bool],
) -> None:
    """Trains a trial, from where an earlier process left off, and takes its scores.

    Then it is COMPLETE or PRUNED, or still UNFINISHED if it was stopped. `flags` are those of
    `python -m trainer` but --run_dir; `should_stop` is asked again and again.

    Raises:
        FailedError: the training has failed.
        config.UsageError: a search that was killed has left a process at work in `run_dir`.
    """
    run = directory.RunDirectory(run_dir)
    output = run_dir / OUTPUT
    with run.held():
        output.touch()
    command = [sys.executable, "-m", "trainer", f"--run_dir={run_dir}", *flags]
    with output.open("a") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        # In a group of its own: Ctrl-C would stop it too, and the stop below, its second, at once.
        process = subprocess.Popen(command, **streams, process_group=0)
    is_stopped = False
    try:
        while process.poll() is None and not is_stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
            before = len(trial.scores)
            is_done = _take_scores(search, trial, run)
            if not is_done and len(trial.scores) > before and search.should_prune(trial):
                trial.state = trials_lib.PRUNED
            is_stopped = should_stop() or trial.state == trials_lib.PRUNED
    finally:  # It stops with a checkpoint.
        process.terminate()
        process.wait()
    if trial.state == trials_lib.PRUNED:
        return
    if process.returncode and not is_stopped:
        last = output.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
        raise FailedError("\n".join(last))
    if not _take_scores(search, trial, run):
        return
    split = search.config_of(trial).validation_split
    if (step := run.best_step()) is None:
        raise FailedError(f"The macro AP is not defined on {split}.")
    records = run.read_metrics().set_index("step")
    record = records[records["split"] == split].loc[step]
    best_scores = record[list(scores.METRICS)].astype(float).to_dict()
    trial.best = {"epoch": int(record["epoch"]), **best_scores}
    trial.state = trials_lib.COMPLETE


def _take_scores(
    search: trials_lib.Search, trial: trials_lib.Trial, run: directory.RunDirectory
) -> bool:
    """Gives a trial the scores of its run so far; returns whether the run is done."""
    config, records = search.config_of(trial), run.read_metrics()
    records = records[records["split"] == config.validation_split]
    if records.empty:
        return False
    scored = records.dropna(subset=[search.objective])
    trial.scores = list(zip(scored["epoch"].tolist(), scored[search.objective], strict=True))
    last = records.iloc[-1]
    trial.minutes = (run.seconds_of_head() + last["seconds"]) / 60
    is_converged = config.patience and run.evaluations_since_best() >= config.patience
    return last["epoch"] == config.epochs or last["step"] == config.max_steps or is_converged
