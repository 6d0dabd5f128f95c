"""How far a score may be from what it would be on other posters of the same kind."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

NUM_RESAMPLES = 500
LEVEL = 0.95
_MOST_POSTERS = 20_000  # Of a resample: scores of more would take minutes.


def bootstrap(
    score: Callable[[np.ndarray], Sequence[float]],
    num_posters: int,
    lowest: float = 0.0,
    num_resamples: int = NUM_RESAMPLES,
) -> np.ndarray:
    """Resamples posters with replacement and returns intervals of scores.

    They are percentiles of the resamples (Efron 1979, https://doi.org/10.1214/aos/1176344552),
    moved so that the resamples' mean is the score: average precision is higher where a poster
    that is drawn twice supports itself. Of more than 20,000 posters each resample has so many, and
    the interval is narrowed by the square root of their share (Bickel, Goetze and van Zwet 1997).

    Args:
        score: int [M], the numbers of posters, to their scores [K].
        num_posters: how many there are to choose from.
        lowest: what no score can be below.
        num_resamples: 500 make the ends steady; tests take fewer.

    Returns:
        The lower and upper ends, float64 [2, K], that 95% of the resamples are between in which
        the score is defined; NaN where there are none.
    """
    rng = np.random.default_rng(0)
    size = min(num_posters, _MOST_POSTERS)
    resampled = np.array(
        [score(rng.integers(num_posters, size=size)) for _ in range(num_resamples)], np.float64
    )
    tail = (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice")
        ends = np.nanquantile(resampled, [tail, 1 - tail], axis=0) - np.nanmean(resampled, axis=0)
    of_all = np.asarray(score(np.arange(num_posters)), np.float64)
    return np.maximum(of_all + ends * np.sqrt(size / num_posters), lowest)
