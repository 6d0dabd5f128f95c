"""Which split a row belongs to."""

import hashlib
from typing import NamedTuple

import numpy as np

_REFERENCE_TEST_FRACTION = 0.15


class Share(NamedTuple):
    """How much of a genre is in a split.

    Attributes:
        genre: its index.
        split: its index.
        wanted: share of the genre's posters.
        got: share of the genre's posters.
        num_posters: of the genre, in all splits.
    """

    genre: int
    split: int
    wanted: float
    got: float
    num_posters: int


def reference_test_rows(num_rows: int) -> np.ndarray:
    """Returns which rows the reference tests on, bool [num_rows]; it trains on the others.

    Equals scikit-learn's `train_test_split(range(n), random_state=0, test_size=0.15)`,
    which the tutorial uses.
    """
    order = np.random.RandomState(0).permutation(num_rows)
    is_test = np.zeros(num_rows, bool)
    is_test[order[: int(np.ceil(num_rows * _REFERENCE_TEST_FRACTION))]] = True
    return is_test


def hashed_split(name: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """Returns train, validation or test, from a hash of the Id or of the group's name.

    A poster keeps its split whatever rows are added or removed.
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position >= 1 - test_fraction:
        return "test"
    return "validation" if position >= 1 - test_fraction - validation_fraction else "train"


def stratified_splits(
    labels: np.ndarray, groups: np.ndarray, fractions: tuple[float, ...], seed: int
) -> np.ndarray:
    """Returns the split of each row, so that every genre is shared out as nearly as can be.

    This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas (2011), "On the
    stratification of multi-label data", section 4.1. Groups are what it distributes, with the
    genres that any of their rows has, whatever their size.

    Args:
        labels: the genres of each row, bool [N, G].
        groups: the group of each row, int [N]; rows of one group are in one split.
        fractions: share of each split; a split of share 0 gets no row.
        seed: changes which rows a split takes.

    Returns:
        The index of the split of each row, uint8 [N].
    """
    from iterstrat import ml_stratifiers  # Slow to import, and seldom wanted.

    _, groups = np.unique(groups, return_inverse=True)
    together = np.zeros((groups.max(initial=-1) + 1, labels.shape[1]), bool)
    np.logical_or.at(together, groups, labels)
    random = np.random.RandomState(seed % 2**32)  # NumPy takes no others.
    order = random.permutation(len(together))
    wanted = np.flatnonzero(fractions)
    chosen = ml_stratifiers.IterativeStratification(
        together[order], np.array(fractions)[wanted], random
    )
    split_of_group = np.empty(len(together), np.uint8)
    split_of_group[order] = wanted[chosen]
    return split_of_group[groups]


def farthest_share(
    labels: np.ndarray, split_of_row: np.ndarray, fractions: tuple[float, ...]
) -> Share | None:
    """Returns the share of a genre in a split that is farthest from the one wanted.

    None if no row has a genre. `labels` are bool [N, G], `split_of_row` indices of splits, int [N].
    """
    counts = np.array([labels[split_of_row == i].sum(axis=0) for i in range(len(fractions))])
    totals = counts.sum(axis=0)
    if not totals.any():
        return None
    got = counts / np.maximum(totals, 1)
    distances = np.abs(got - np.array(fractions)[:, None]) * (totals > 0)
    split, genre = np.unravel_index(distances.argmax(), distances.shape)
    return Share(
        int(genre), int(split), fractions[split], float(got[split, genre]), int(totals[genre])
    )
