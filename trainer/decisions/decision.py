"""What makes genres of a model's logits: calibration and thresholds, as `thresholds.json`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trainer.run import directory

RECOMMENDATION = (
    "Train with a validation split (--train_split='train[:85%]' "
    "--validation_split='train[85%:]'), and the report chooses them."
)
MIN_TO_CHOOSE = 10  # Posters of a genre: with fewer, its threshold would be one poster's.
NEVER = 2.0  # A threshold that no probability reaches.
_COLUMNS = ["threshold", "slope", "intercept", "posters", "remark"]


class Decision(NamedTuple):
    """Calibration and threshold of each genre.

    Attributes:
        table: a row a genre, in the order of the logits: `slope` and `intercept`, with which a
            logit z has the calibrated probability 1 / (1 + exp(-(slope * z + intercept)));
            `threshold`, the lowest calibrated probability with which a poster is taken to have
            the genre; `posters`, how many had it where these were chosen; `remark`, what is
            special about them, or empty.
        how: how they came about, in sentences.
        split: whose posters they were chosen on; empty: none.
    """

    table: pd.DataFrame
    how: str
    split: str = ""

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Returns calibrated probabilities, float64 [N, G], of logits, float [N, G]."""
        return _calibrate(logits, self.table)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """Returns which genres posters are taken to have, bool [N, G], by logits, float [N, G]."""
        return self.calibrate(logits) >= self.table["threshold"].to_numpy()

    def to_json(self) -> dict[str, Any]:
        """Returns the decision as a JSON object."""
        genres = self.table.reset_index().to_dict("records")
        return {"how": self.how, "split": self.split, "genres": genres}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Decision":
        """Inverse of `to_json`."""
        table = pd.DataFrame(content["genres"]).set_index("genre")
        return cls(table, content["how"], content["split"])


def choose(
    genres: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    target_precision: float = 0.0,
    split: str = "",
) -> Decision:
    """Chooses calibration and thresholds by a model's answers.

    A genre of fewer than `MIN_TO_CHOOSE` posters gets what is right for all genres together. So
    does one whose logits fall with its probability, or none is calibrated if all together do.

    Args:
        genres: names [G].
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        target_precision: as of `choose_thresholds`.
        split: whose posters they are; nothing should be reported of them.
    """
    labels = np.asarray(labels) > 0.5
    chosen = choose_thresholds(labels, logits, target_precision)
    of_all, as_all = fit_calibration(labels.ravel(), logits.ravel()), "as all genres together"
    if of_all[0] <= 0:  # It would turn the order of the scores round.
        of_all, as_all = (1.0, 0.0), "not at all"
    rows = []
    for g, count in enumerate(labels.sum(axis=0)):
        slope, intercept, remark = *of_all, f"{count} posters: as for all genres together"
        if count >= MIN_TO_CHOOSE:
            slope, intercept = fit_calibration(labels[:, g], logits[:, g])
            remark = ""
            if slope <= 0:
                (slope, intercept), remark = of_all, f"calibrated {as_all}"
        if np.isinf(chosen[g]):
            remark = "; ".join(
                filter(None, [remark, "no threshold is so precise: never predicted"])
            )
        rows.append((0.0, slope, intercept, int(count), remark))
    table = pd.DataFrame(rows, pd.Index(list(genres), name="genre"), _COLUMNS)
    table["threshold"] = np.where(np.isinf(chosen), NEVER, _calibrate(chosen, table))
    goal = "its best F1"
    if target_precision:
        goal = f"a precision of at least {target_precision:g}"
    how = (
        f"Chosen on {len(labels)} posters of {split}: for each genre the threshold with {goal}, "
        "and the two numbers that calibrate its scores (Platt)."
    )
    return Decision(table, how, split)


def choose_thresholds(
    labels: np.ndarray, logits: np.ndarray, target_precision: float = 0.0
) -> np.ndarray:
    """Chooses the threshold of each genre.

    A genre of fewer than `MIN_TO_CHOOSE` posters gets the threshold that is chosen for all
    (poster, genre) pairs together. Choose on other posters than those that are scored.

    Args:
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        target_precision: 0: the threshold with the best F1; else the lowest whose precision is
            at least that.

    Returns:
        Logits, float64 [G]; a poster has a genre if its logit is at least as high. Infinite
        where no threshold has the precision.
    """
    labels, logits = np.asarray(labels) > 0.5, np.asarray(logits, np.float64)
    of_all = _choose_threshold(labels.ravel(), logits.ravel(), target_precision)
    return np.array(
        [
            _choose_threshold(labels[:, g], logits[:, g], target_precision)
            if count >= MIN_TO_CHOOSE
            else of_all
            for g, count in enumerate(labels.sum(axis=0))
        ]
    )


def _choose_threshold(labels: np.ndarray, logits: np.ndarray, target_precision: float) -> float:
    """Returns the middle between the lowest logit taken and the highest left out."""
    order = np.argsort(-logits, kind="stable")
    logits = logits[order]
    num_right, num_taken = np.cumsum(labels[order]), np.arange(1, len(logits) + 1)
    is_last_of_equals = np.append(logits[:-1] > logits[1:], True)
    if target_precision:
        is_precise = is_last_of_equals & (num_right >= target_precision * num_taken)
        if not is_precise.any():
            return np.inf
        last = int(np.flatnonzero(is_precise)[-1])
    else:
        f1 = 2 * num_right / (num_taken + labels.sum())
        last = int(np.argmax(np.where(is_last_of_equals, f1, -1.0)))
    return float(np.mean(logits[last : last + 2]))


def fit_calibration(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Fits the probability of a label to its logit z: 1 / (1 + exp(-(slope * z + intercept))).

    The targets are those of Platt 1999 ("Probabilistic outputs for support vector machines"): not
    quite 0 and 1, so that the likelihood has a maximum also where a logit divides the labels.

    Args:
        labels: bool [N].
        logits: float [N].

    Returns:
        Slope and intercept.
    """
    from sklearn import linear_model  # It takes a second, which a training need not wait for.

    num_positives, num_negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
    # A target between 0 and 1 is both labels, with these weights.
    model = linear_model.LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000)
    model.fit(
        np.tile(np.float64(logits), 2)[:, None],
        np.repeat([1, 0], len(labels)),
        np.concatenate([targets, 1 - targets]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def undecided(genres: Sequence[str], why: str = "") -> Decision:
    """Returns the thresholds 0.5, and no calibration; `why` says in a sentence what to do."""
    row = dict(zip(_COLUMNS, (0.5, 1.0, 0.0, 0, ""), strict=True))
    table = pd.DataFrame(row, pd.Index(list(genres), name="genre"))
    how = f"Not chosen: each threshold is 0.5, and scores are as they are. {why}"
    return Decision(table, how.strip())


def write(path: pathlib.Path, decision: Decision, step: int, tta: str) -> None:
    """Writes `thresholds.json`; `step` and `tta` are those of what answered.

    Raises:
        config.UsageError: it cannot be written; what was there before still is.
    """
    content = {"step": step, "tta": tta, **decision.to_json()}
    directory.write_atomically(path, json.dumps(content, indent=2) + "\n")


def read(path: pathlib.Path, **facts: int | str) -> Decision | None:
    """Returns a decision that was written, or None if there is none, or it is of other facts."""
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if any(content[name] != value for name, value in facts.items()):
        return None
    return Decision.from_json(content)


def _calibrate(logits: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    z = np.float64(logits) * table["slope"].to_numpy() + table["intercept"].to_numpy()
    return 1 / (1 + np.exp(-np.clip(z, -500, 500)))
