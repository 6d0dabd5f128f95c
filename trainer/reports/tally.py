"""Scores of more answers than are kept: what is counted of them, in memory of one size.

Logits are counted in bins, and average precision is that of answers which are alike within a bin.
How far that may be from the truth is known: it is as if all that is right in a bin came first, or
last. All other scores are exact.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from trainer.reports import scores as scores_lib

# Of a float16: sign, exponent and the first 8 bits after it, so that a bin is 0.4% of its logits.
_BITS = 14
_NUM_BINS = 1 << _BITS
_NUM_FIRST = 16  # Answers that are kept as they are, to be shown.
# Of which the sum over the posters is kept.
_SUMMED = ("loss", "label_accuracy", "lrap", "constant_lrap")


class Tally:
    """Counts answers and scores them; it has what `answers.Kept` has."""

    def __init__(self, base_rates: np.ndarray):
        """Begins with no answers.

        Args:
            base_rates: float [G], what the constant predictor answers.
        """
        self._base_rates = np.asarray(base_rates, np.float64)
        # Answers without and with each genre, in each bin of logits.
        self._counts = np.zeros((2, len(self._base_rates), _NUM_BINS), np.int32)
        self._sums = np.zeros(len(_SUMMED))
        self._first: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        """Returns how many posters were answered for."""
        return int(self._counts[:, 0].sum(dtype=np.int64))

    def anew(self) -> "Tally":
        """Returns one without answers."""
        return Tally(self._base_rates)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: `counts` int32 [2, G, B] and `sums` float64 [4]."""
        return {"counts": self._counts, "sums": self._sums}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the place of all answers with those of which `arrays` are."""
        self._counts, self._sums = (np.array(arrays[name]) for name in ("counts", "sums"))

    def add(self, labels: np.ndarray, logits: np.ndarray) -> None:
        """Counts more answers.

        Args:
            labels: [N, G], 0 or 1.
            logits: float [N, G].
        """
        labels, logits = np.asarray(labels) > 0.5, np.asarray(logits)
        if missing := _NUM_FIRST - sum(len(part) for part, _ in self._first):
            self._first.append((labels[:missing].copy(), logits[:missing].copy()))
        constant = scores_lib.constant_logits(self._base_rates, len(labels))
        self._sums += [
            scores_lib.poster_losses(labels, logits).sum(),
            np.mean((logits > 0) == labels, axis=1).sum(),
            scores_lib.ranking_precisions(labels, logits).sum(),
            scores_lib.ranking_precisions(labels, constant).sum(),
        ]
        genres = np.arange(labels.shape[1])
        np.add.at(self._counts, (labels.astype(int), genres, _bins(logits)), 1)

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and logits [count or fewer, G] of the first posters."""
        labels, logits = (np.concatenate(parts) for parts in zip(*self._first, strict=True))
        return labels[:count], logits[:count]

    def compute_metrics(self) -> dict[str, float]:
        """Returns what `scores.compute_metrics` does, and how far it may be from the truth.

        Returns:
            The metrics, and `macro_ap_error` and `micro_ap_error`.

        Raises:
            ValueError: a logit was not finite.
        """
        means = self._means()
        if not math.isfinite(means["loss"]):
            raise ValueError("The model's answers are not finite.")
        of_genres = [average_precision(*counts) for counts in zip(*self._counts, strict=True)]
        occurring = [found for found in of_genres if found] or [_UNDEFINED]
        macro, macro_error = np.mean(occurring, axis=0)
        micro, micro_error = average_precision(*self._counts.sum(axis=1)) or _UNDEFINED
        return {
            "loss": means["loss"],
            "label_accuracy": means["label_accuracy"],
            "macro_ap": float(macro),
            "micro_ap": micro,
            "lrap": means["lrap"],
            "macro_ap_error": float(macro_error),
            "micro_ap_error": micro_error,
        }

    def compute_constant_metrics(self) -> dict[str, float]:
        """Returns what `scores.compute_constant_metrics` does."""
        shares = self._counts[1].sum(axis=1, dtype=np.int64) / len(self)
        return constant_metrics(shares, self._base_rates, self._means()["constant_lrap"])

    def _means(self) -> dict[str, float]:
        return dict(zip(_SUMMED, (self._sums / len(self)).tolist(), strict=True))


def constant_metrics(
    shares: np.ndarray, base_rates: np.ndarray, lrap: float = math.nan
) -> dict[str, float]:
    """Returns what `scores.compute_constant_metrics` does, by the genres' shares alone.

    Args:
        shares: float [G], each genre's share of the posters.
        base_rates: float [G], what the constant predictor answers.
        lrap: which the shares do not tell.
    """
    rates, places = np.unique(base_rates, return_inverse=True)
    of_rates = [np.bincount(places, part, len(rates)) for part in (1 - shares, shares)]
    micro = average_precision(*of_rates) or _UNDEFINED
    return scores_lib.join_constant_metrics(shares, base_rates, micro.value, lrap)


class Bounded(NamedTuple):
    """A number, and how far the truth is from it at most."""

    value: float
    error: float


_UNDEFINED = Bounded(math.nan, math.nan)


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> Bounded | None:
    """Returns average precision as `scores` has it, of numbers that are alike within a bin.

    A bin's positives have, in the best order, the precisions (a + j) / (a + b + j), where a and b
    are the positives and negatives above it, and j is 1, 2, ...; in the worst its negatives are
    among b. The sum of these is one of digamma functions.

    Args:
        negatives: int [B], how many are in each bin, the lowest first.
        positives: likewise.

    Returns:
        The average precision, and how far that of the numbers themselves is from it at most; None
        without positives.
    """
    negatives, positives = negatives[::-1].astype(np.float64), positives[::-1].astype(np.float64)
    total = positives.sum()
    if not total:
        return None
    chosen = positives > 0
    right, wrong = np.cumsum(positives)[chosen], np.cumsum(negatives)[chosen]
    positives, negatives = positives[chosen], negatives[chosen]
    above = right - positives

    def in_order(wrong):
        """Of positives which all come after so many negatives, the sum of the precisions."""
        ranks = special.digamma(right + wrong + 1) - special.digamma(above + wrong + 1)
        return np.sum(positives - wrong * ranks) / total

    alike = np.sum(positives * right / (right + wrong)) / total
    error = max(in_order(wrong - negatives) - alike, alike - in_order(wrong), 0.0)
    return Bounded(float(alike), float(error))


def _bins(logits: np.ndarray) -> np.ndarray:
    """Returns the bin of each logit, 0 to B - 1, higher for higher ones."""
    with np.errstate(over="ignore"):  # What is too high for a float16 is in the last bin.
        bits = (logits.astype(np.float16) + np.float16(0)).view(np.uint16)  # Without -0.
    ordered = np.where(bits & 0x8000, ~bits, bits | 0x8000)
    return ordered >> (16 - _BITS)
