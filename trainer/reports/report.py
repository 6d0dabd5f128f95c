"""All that a report says, computed once: what `sections`, `plots` and `galleries` show."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import pandas as pd

from trainer.decisions import decision as decision_lib
from trainer.reports import analysis, evaluated as evaluated_lib, slices


class Decided(NamedTuple):
    """What is made of the answers: by other posters, or by these for each other."""

    calibrated: np.ndarray  # float64 [N, G], probabilities.
    predicted: np.ndarray  # bool [N, G]
    thresholds: np.ndarray  # float64 [G], of `calibrated`; NaN where each fifth has its own.
    how: str


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A run's best model and what is to be said of its answers.

    Attributes:
        evaluated: the answers.
        columns_file: CSV of more columns of the posters, to score parts of them by; empty: none.
    """

    evaluated: evaluated_lib.Evaluated
    columns_file: str = ""

    @functools.cached_property
    def decided(self) -> Decided:
        """Calibrated probabilities and predicted genres."""
        evaluated, target = self.evaluated, self.evaluated.target_precision
        if decision := evaluated.decision:
            return Decided(
                decision.calibrate(evaluated.logits),
                decision.predict(evaluated.logits),
                decision.table["threshold"].to_numpy(),
                decision.how,
            )
        goal = f"a precision of at least {target:g}" if target else "its best F1"
        how = (
            f"Here each genre has the threshold with {goal}, chosen for each fifth of "
            f"{evaluated.split} on the other four, and so are the numbers that calibrate its "
            "scores."
        )
        if not evaluated.facts["validation_split"]:
            how += " There is no validation split to choose them on."
        calibrated, predicted = decision_lib.cross_fit(*evaluated.answers, target)
        return Decided(calibrated, predicted, np.full(predicted.shape[1], np.nan), how)

    @functools.cached_property
    def scores(self) -> pd.DataFrame:
        """Each metric with its interval, of `analysis.score_with_intervals`."""
        evaluated = self.evaluated
        return analysis.score_with_intervals(
            evaluated.answers,
            (self.decided.calibrated, self.decided.predicted),
            evaluated.base_rates,
            evaluated.target_precision,
        )

    @functools.cached_property
    def genres(self) -> pd.DataFrame:
        """Each genre's scores, of `analysis.score_genres`, with `threshold`."""
        evaluated = self.evaluated
        genres = analysis.score_genres(
            evaluated.facts["genres"],
            evaluated.answers,
            self.decided.predicted,
            evaluated.train.genre_counts,
        )
        thresholds = pd.Series(self.decided.thresholds, evaluated.facts["genres"])
        genres.insert(genres.columns.get_loc("precision"), "threshold", thresholds)
        return genres

    @functools.cached_property
    def slices(self) -> pd.DataFrame:
        """Scores of parts of the posters, of `slices.score`.

        Raises:
            config.UsageError: the columns cannot be read.
        """
        evaluated = self.evaluated
        columns = slices.known(evaluated.labels, evaluated.sizes)
        if self.columns_file:
            more = slices.read_columns(self.columns_file, evaluated.poster_ids)
            genres = {"Genre", *evaluated.facts["genres"]}
            columns = columns.join(more[more.columns.difference(genres, sort=False)])
        return slices.score(columns, *evaluated.answers)
