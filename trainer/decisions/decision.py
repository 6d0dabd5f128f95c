"""What makes genres of a model's logits: calibration and thresholds, as `thresholds.json`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trainer.decisions import calibration, thresholds
from trainer.run import directory

RECOMMENDATION = (
    "Train with a validation split (--train_split='train[:85%]' "
    "--validation_split='train[85%:]'), and the report chooses them."
)
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

    A genre of fewer than `thresholds.MIN_TO_CHOOSE` posters gets what is right for all genres
    together. So does one whose logits fall with its probability, or none is calibrated if all
    together do.

    Args:
        genres: names [G].
        labels: [N, G], 0 or 1.
        logits: float [N, G].
        target_precision: as of `thresholds.choose_thresholds`.
        split: whose posters they are; nothing should be reported of them.
    """
    labels = np.asarray(labels) > 0.5
    chosen = thresholds.choose_thresholds(labels, logits, target_precision)
    of_all, as_all = calibration.fit(labels.ravel(), logits.ravel()), "as all genres together"
    if of_all[0] <= 0:  # It would turn the order of the scores round.
        of_all, as_all = (1.0, 0.0), "not at all"
    rows = []
    for g, count in enumerate(labels.sum(axis=0)):
        slope, intercept, remark = *of_all, f"{count} posters: as for all genres together"
        if count >= thresholds.MIN_TO_CHOOSE:
            slope, intercept = calibration.fit(labels[:, g], logits[:, g])
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


def undecided(genres: Sequence[str], why: str = "") -> Decision:
    """Returns the thresholds 0.5, and no calibration, for want of posters to choose by.

    Args:
        genres: names [G].
        why: what to do about it, in a sentence.
    """
    row = dict(zip(_COLUMNS, (0.5, 1.0, 0.0, 0, ""), strict=True))
    table = pd.DataFrame(row, pd.Index(list(genres), name="genre"))
    how = f"Not chosen: each threshold is 0.5, and scores are as they are. {why}"
    return Decision(table, how.strip())


def write(path: pathlib.Path, decision: Decision, step: int, tta: str) -> None:
    """Writes `thresholds.json`.

    Args:
        path: where to.
        decision: what it has.
        step: of the checkpoint that answered.
        tta: variants of each poster that it answered for, of `config.TTA`.

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
