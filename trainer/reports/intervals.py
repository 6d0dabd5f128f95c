"""How far a score may be from what it would be on other posters of the same kind."""

from collections.abc import Callable, Sequence

import numpy as np

NUM_RESAMPLES = 500
LEVEL = 0.95
_MOST_POSTERS = 20_000  # Of a resample: scores of more would take minutes.


def bootstrap(
    score: Callable[[np.ndarray], Sequence[float]], num_posters: int, seed: int = 0
) -> np.ndarray:
    """Resamples posters with replacement and returns intervals of scores.

    The intervals are percentiles (Efron 1979, https://doi.org/10.1214/aos/1176344552). Of more
    than 20,000 posters each resample has so many, and the interval is narrowed by the square
    root of their share (Bickel, Goetze and van Zwet 1997).

    Args:
        score: int [M], the numbers of posters, to their scores [K].
        num_posters: how many there are to choose from.
        seed: of the resamples.

    Returns:
        The lower and upper ends, float64 [2, K], that 95% of the resamples are between; NaN
        where a score is.
    """
    rng = np.random.default_rng(seed)
    size = min(num_posters, _MOST_POSTERS)
    resampled = [score(rng.integers(num_posters, size=size)) for _ in range(NUM_RESAMPLES)]
    tail = (1 - LEVEL) / 2
    ends = np.quantile(np.asarray(resampled, np.float64), [tail, 1 - tail], axis=0)
    if size == num_posters:
        return ends
    of_all = np.asarray(score(np.arange(num_posters)), np.float64)
    return of_all + (ends - of_all) * np.sqrt(size / num_posters)
