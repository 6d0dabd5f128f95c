"""All that a report says, computed once: what `sections`, `plots` and `galleries` show."""

import dataclasses
import functools

import numpy as np
import pandas as pd

from trainer.reports import analysis, evaluated as evaluated_lib, intervals, slices


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A run's best model and what is to be said of its predictions."""

    evaluated: evaluated_lib.Evaluated
    columns_file: str = ""  # CSV of more columns of the posters, to score parts of them by.
    num_resamples: int = intervals.NUM_RESAMPLES

    @functools.cached_property
    def calibrated(self) -> np.ndarray:
        """Calibrated probabilities, float64 [N, G]."""
        return self.evaluated.decision.calibrate(self.evaluated.logits)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """Which genres the posters are taken to have, bool [N, G]."""
        return self.evaluated.decision.predict(self.evaluated.logits)

    @functools.cached_property
    def scores(self) -> pd.DataFrame:
        """Each metric with its interval, of `analysis.score_with_intervals`."""
        evaluated = self.evaluated
        return analysis.score_with_intervals(
            evaluated.answers,
            (self.calibrated, self.predicted),
            evaluated.base_rates,
            evaluated.target_precision,
            self.num_resamples,
        )

    @functools.cached_property
    def genres(self) -> pd.DataFrame:
        """Each genre's scores, of `analysis.score_genres`, with `threshold`."""
        evaluated = self.evaluated
        genres = analysis.score_genres(
            evaluated.facts["genres"],
            evaluated.answers,
            self.predicted,
            evaluated.train.genre_counts,
            self.num_resamples,
        )
        thresholds = evaluated.decision.table["threshold"]
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
