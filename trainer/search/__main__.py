"""Searches for settings that suit a dataset: random ones, then such as did well, until time is up.

    python -m trainer.search --dataset=poster_tfds/imdb_clean --search_dir=searches/a --minutes=120

Each trial is a run in --search_dir with settings of its own. The first has those of --preset and
of the flags given. Trials are judged on the validation split; none sees the test split. One that
is worse than the median of the others, after a quarter of its epochs, is pruned: it ends early.
The same command goes on where an earlier one stopped, within a trial too. At the end are a table
and the command that trains the best and evaluates it on the test split.
"""

import collections
import dataclasses
import pathlib
import shlex
import time
from collections.abc import Callable

from absl import flags

from trainer import command_line, config as config_lib, presets
from trainer.search import space as space_lib

_ROWS_SHOWN = 10
_HEADINGS = {"macro_ap": "macro AP", "micro_ap": "micro AP", "loss": "loss"}

_SEARCH_DIR = flags.DEFINE_string("search_dir", None, "Where the search is kept.", required=True)
_PRESET = presets.define_flag(
    "Settings that belong together, as of `python -m trainer`: those of the first trial, and what "
    "is not varied in the others."
)
_MINUTES = flags.DEFINE_float(
    *("minutes", 60, "After so many minutes the running trial is stopped, and the search ends."),
    lower_bound=0,
)
_MAX_TRIALS = flags.DEFINE_integer(
    "max_trials", 0, "End after so many trials in all; 0: no limit.", lower_bound=0
)
_OBJECTIVE = flags.DEFINE_enum(
    "objective",
    "loss",
    list(_HEADINGS),
    "What is best: the score on the validation split of a trial's best checkpoint.",
)
_SPACE = flags.DEFINE_string(
    "space",
    "",
    "JSON file of the settings to vary, each with a list of choices or a range, as "
    '{"head_units": [256, 512], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}. '
    "Empty: what suits the preset, but no setting whose flag is given.",
)
config_lib.define_flags()


def main(arguments: list[str]) -> None:
    del arguments
    command_line.import_stock_tensorflow()  # For TFDS; the trials have their own.
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise config_lib.UsageError(
            "A search needs Optuna. Install it with pip install -e '.[search]'."
        ) from None
    from poster_tfds import directory_lock
    from trainer.run import directory, stopping
    from trainer.search import trials as trials_lib

    config = presets.config_from_flags(_PRESET)
    config = dataclasses.replace(config, validation_split=trials_lib.choose_split(config))
    search = trials_lib.Search(config, _choose_space(config), _OBJECTIVE.value)
    search_dir = directory.local_path(_SEARCH_DIR.value, "--search_dir")
    end = time.monotonic() + 60 * _MINUTES.value
    try:
        with directory_lock.hold(search_dir), stopping.StopRequest() as stop:
            search.read_trials(search_dir / "search.json")
            _run_trials(search, search_dir, lambda: stop.requested or time.monotonic() >= end)
    except directory_lock.HeldError as error:
        raise config_lib.UsageError(f"--search_dir={search_dir}: {error}") from error
    _report(search, search_dir)


def _run_trials(search, search_dir: pathlib.Path, should_stop: Callable[[], bool]) -> None:
    """Goes on with the trial that was stopped, and begins others.

    Raises:
        config.UsageError: the first trial has failed, or one after the other.
    """
    from trainer.search import process, trials as trials_lib

    print(_format_line("trial", _HEADINGS[search.objective], "epoch", "minutes", ""), flush=True)
    failed_before = False
    while not should_stop():
        if not search.trials or search.trials[-1].state != trials_lib.UNFINISHED:
            if _MAX_TRIALS.value and len(search.trials) >= _MAX_TRIALS.value:
                return
            search.trials.append(trials_lib.Trial(search.propose()))
            search.write(search_dir / "search.json")
        number, trial = len(search.trials) - 1, search.trials[-1]
        run_dir = search_dir / "trials" / f"{number:03d}"
        # Checkpoints take most of the room; the test split is nothing to choose by.
        trial_flags = ["--keep_checkpoints=1", *_flags_of(trial), "--test_split=", "--noreport"]
        if search.config.cache == "auto" and not search.config.data_service:
            trial_flags.append("--cache=disk")  # Of all trials the first alone decodes.
        try:
            process.train(search, trial, trial_flags, run_dir, should_stop)
        except process.FailedError as error:
            # Some settings fail where others do not; a full disk or a wrong flag fails all.
            if not number or failed_before:
                raise config_lib.UsageError(
                    f"Trial {number} has failed; {run_dir / process.OUTPUT} ends with:\n\n{error}"
                    "\n\nThe same command tries it again."
                ) from error
            trial.state = trials_lib.FAILED
        failed_before = trial.state == trials_lib.FAILED
        search.write(search_dir / "search.json")
        print(_describe(search, number, trial), flush=True)
        if trial.state == trials_lib.UNFINISHED:
            return


def _describe(search, number: int, trial) -> str:
    epoch, value = trial.scores[-1] if trial.scores else ("", None)
    if trial.best:
        epoch, value = trial.best["epoch"], search.value(trial)
    is_best = number == next(iter(search.best_first()), None)
    score = "" if value is None else f"{value:.4f}"
    settings = " ".join(f"{name}={value}" for name, value in trial.settings.items())
    rest = f"{trial.state}  {settings}"
    return _format_line(f"{number}{'*' * is_best}", score, epoch, f"{trial.minutes:.1f}", rest)


def _format_line(number, value, epoch, minutes, rest: str) -> str:
    return f"{number:>6} {value:>9} {epoch:>6} {minutes:>8}  {rest}".rstrip()


def _report(search, search_dir: pathlib.Path) -> None:
    """Prints the complete trials, best first, and the command of the best."""
    import pandas as pd

    states = collections.Counter(trial.state for trial in search.trials).most_common()
    counts = ", ".join(f"{count} {state}" for state, count in states)
    print(f"\n{search_dir / 'search.json'} has {len(search.trials)} trials: {counts or 'none'}.")
    if not (numbers := search.best_first()):
        print("None is complete yet. The same command goes on.")
        return
    rows = [
        {
            "trial": number,
            **{heading: f"{trial.best[name]:.4f}" for name, heading in _HEADINGS.items()},
            "epoch": trial.best["epoch"],
            "minutes": f"{trial.minutes:.1f}",
            **trial.settings,
        }
        for number in numbers[:_ROWS_SHOWN]
        for trial in [search.trials[number]]
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    best = _flags_of(search.trials[numbers[0]])
    command = ["python", "-m", "trainer", *best, f"--run_dir={search_dir / 'best'}"]
    print(
        f"On {search.config.validation_split}, the best of those that are complete:\n\n{table}\n\n"
        "The first was chosen for its score, which is therefore too good. This trains with its\n"
        f"settings and evaluates on posters that chose nothing:\n\n  {shlex.join(command)}"
    )


def _flags_of(trial) -> list[str]:
    """Returns the flags that were given, as they are for every trial, and those of one."""
    names = [field.name for field in dataclasses.fields(config_lib.Config)]
    given = [flags.FLAGS[name].serialize() for name in names if flags.FLAGS[name].present]
    varied = [f"--{name}={value}" for name, value in trial.settings.items()]
    return [f"--preset={_PRESET.value}", *given, *varied]


def _choose_space(config: config_lib.Config) -> space_lib.Space:
    if not _SPACE.value:
        space = space_lib.default_space(config)
        return {name: v for name, v in space.items() if not flags.FLAGS[name].present}
    space = space_lib.read_space(pathlib.Path(_SPACE.value), config)
    if given := [name for name in space if flags.FLAGS[name].present]:
        raise config_lib.UsageError(
            f"--{given[0]} is given, and --space={_SPACE.value} varies it: leave one of them out."
        )
    return space


if __name__ == "__main__":
    command_line.run(main)
