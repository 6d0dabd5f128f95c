"""Which split a row belongs to."""

import hashlib

import numpy as np

_REFERENCE_TEST_FRACTION = 0.15


def reference_test_rows(num_rows: int) -> np.ndarray:
    """Returns which rows the reference tests on, bool [num_rows]; it trains on the others.

    Equals scikit-learn's `train_test_split(range(n), random_state=0, test_size=0.15)`,
    which the tutorial uses.
    """
    order = np.random.RandomState(0).permutation(num_rows)
    is_test = np.zeros(num_rows, bool)
    is_test[order[: int(np.ceil(num_rows * _REFERENCE_TEST_FRACTION))]] = True
    return is_test


def hashed_split(
    poster_id: str, seed: int, validation_fraction: float, test_fraction: float
) -> str:
    """Returns train, validation or test, from a hash of the Id.

    A poster keeps its split whatever rows are added or removed.
    """
    digest = hashlib.blake2b(f"{seed}:{poster_id}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position >= 1 - test_fraction:
        return "test"
    return "validation" if position >= 1 - test_fraction - validation_fraction else "train"
