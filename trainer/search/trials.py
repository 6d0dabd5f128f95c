"""The trials of a search, as `search.json` has them, and what Optuna makes of them.

Optuna keeps nothing: what it proposes follows from the trials that have ended, so a search that
goes on is the search that was not interrupted.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import optuna

from trainer import config as config_lib, run_data
from trainer.data import splits
from trainer.run import directory
from trainer.search import space as space_lib

UNFINISHED, COMPLETE, PRUNED, FAILED = "unfinished", "complete", "pruned", "failed"

# Name of the objective -> the direction in which it is better.
OBJECTIVES = {"macro_ap": "maximize", "micro_ap": "maximize", "loss": "minimize"}

_STATES = {
    UNFINISHED: optuna.trial.TrialState.RUNNING,
    COMPLETE: optuna.trial.TrialState.COMPLETE,
    PRUNED: optuna.trial.TrialState.PRUNED,
    FAILED: optuna.trial.TrialState.FAIL,
}
# No trial is pruned before so many are complete, nor in the first part of its epochs, while the
# learning rate rises.
_COMPLETE_BEFORE_PRUNING = 4
_SHARE_NOT_PRUNED = 0.25
_DIGITS = 3  # Of a proposed number: more would only look exact.

_ADVICE = (
    "Keep a part of train to judge by: --train_split='train[:85%]' "
    "--validation_split='train[85%:]'."
)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclasses.dataclass
class Trial:
    """One choice of settings and how good it was."""

    settings: dict[str, Any]  # What was varied.
    state: str = UNFINISHED  # Or COMPLETE, PRUNED or FAILED.
    # Of each evaluated epoch: [epoch, objective on the validation split].
    scores: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    best: dict[str, float] | None = None  # Epoch and scores of a complete one's best checkpoint.
    minutes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """What makes a search, and the trials so far, a file."""

    config: config_lib.Config  # Of the first trial; of the others, what is not varied.
    space: space_lib.Space
    objective: str  # Of OBJECTIVES.
    trials: list[Trial] = dataclasses.field(default_factory=list)  # The last may be UNFINISHED.

    def write(self, path: pathlib.Path) -> None:
        directory.write_atomically(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def read_trials(self, path: pathlib.Path) -> None:
        """Takes the trials of the file, if there is one.

        Raises:
            config.UsageError: it is of another search.
        """
        if not path.exists():
            return
        content = json.loads(path.read_text())
        trials = content.pop("trials")
        before, now = ({**of.pop("config"), **of} for of in (content, dataclasses.asdict(self)))
        changed = [
            f"  --{name}: {before.get(name)!r} then, {value!r} now\n"
            for name, value in now.items()
            if name != "trials" and before.get(name) != value
        ]
        if changed:
            raise config_lib.UsageError(
                f"{path} is of a search with other settings:\n{''.join(changed)}"
                "Repeat its settings to go on, or choose another --search_dir."
            )
        self.trials[:] = [Trial(**trial) for trial in trials]

    def config_of(self, trial: Trial) -> config_lib.Config:
        return dataclasses.replace(self.config, **trial.settings)

    def value(self, trial: Trial) -> float | None:
        """Returns the objective of a complete trial's best checkpoint."""
        return trial.best[self.objective] if trial.state == COMPLETE else None

    def best_first(self) -> list[int]:
        """Returns the numbers of the complete trials."""
        sign = -1 if OBJECTIVES[self.objective] == "maximize" else 1
        complete = [i for i, trial in enumerate(self.trials) if trial.state == COMPLETE]
        return sorted(complete, key=lambda i: sign * self.value(self.trials[i]))

    def propose(self) -> dict[str, Any]:
        """Returns settings for the next trial, none of which is running.

        The first has those of `config`. Others are drawn at random until ten have ended, then by
        Optuna's tree-structured Parzen estimator (https://arxiv.org/abs/2304.11127).
        """
        if not self.trials:
            return {name: getattr(self.config, name) for name in self.space}
        # Of its own for each, as the state of the random numbers is kept nowhere.
        study = self._study(optuna.samplers.TPESampler(seed=len(self.trials)))
        drawn = study.ask({name: _distribution(v) for name, v in self.space.items()}).params
        return {name: _round(value, self.space[name]) for name, value in drawn.items()}

    def should_prune(self, trial: Trial) -> bool:
        """Returns whether its best score is under the median of the complete, at its last epoch."""
        if "epochs" in self.space:  # Then epochs of the same number do not compare.
            return False
        warmup = math.ceil(_SHARE_NOT_PRUNED * self.config.epochs)
        pruner = optuna.pruners.MedianPruner(_COMPLETE_BEFORE_PRUNING, warmup)
        return pruner.prune(self._study(), self._frozen(trial))

    def _study(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        study = optuna.create_study(sampler=sampler, direction=OBJECTIVES[self.objective])
        ended = (trial for trial in self.trials if trial.state != UNFINISHED)
        study.add_trials(map(self._frozen, ended))
        return study

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        # The first trial's settings may lie outside the space: those Optuna does not take.
        inside = {
            name: value
            for name, value in trial.settings.items()
            if space_lib.contains(self.space[name], value)
        }
        return optuna.trial.create_trial(
            state=_STATES[trial.state],
            value=self.value(trial),
            params=inside,
            distributions={name: _distribution(self.space[name]) for name in inside},
            intermediate_values=dict(trial.scores),
        )


def choose_split(config: config_lib.Config) -> str:
    """Returns the split to judge by: posters that no trial trains on, nor kept for the end.

    Raises:
        config.UsageError: there is none, or it shares posters with train or test.
    """
    train = splits.open_split(config.dataset, config.data_dir, config.train_split)
    validation = run_data.choose_validation(config, train)
    if not validation:
        raise config_lib.UsageError(
            f"--dataset={config.dataset} has no validation split, and a search must not choose by "
            f"the test split. {_ADVICE}"
        )
    judge = splits.Split(train.builder, validation)
    for_test = {config.test_split} | ({"test"} & train.builder.info.splits.keys())
    for name in (config.train_split, *sorted(for_test - {""})):
        if judge.overlaps(splits.Split(train.builder, name)):
            raise config_lib.UsageError(
                f"--validation_split={validation} shares posters with {name}: a search would "
                f"choose by what it trains on, or by the test split. {_ADVICE}"
            )
    return validation


def _distribution(values: list | dict[str, Any]) -> optuna.distributions.BaseDistribution:
    if isinstance(values, list):
        return optuna.distributions.CategoricalDistribution(values)
    if isinstance(values["low"], int):
        return optuna.distributions.IntDistribution(**values)
    return optuna.distributions.FloatDistribution(**values)


def _round(value: Any, values: list | dict[str, Any]) -> Any:
    if isinstance(values, list) or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), values["low"]), values["high"])
