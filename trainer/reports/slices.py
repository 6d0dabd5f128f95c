"""Parts of the posters, by what is known of them beside their genres."""

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from trainer import config as config_lib
from trainer.reports import scores as scores_lib

_MIN_POSTERS = 20  # Of a part: scores of fewer say little.
_MOST_VALUES = 12  # Of a column with a part for each value; numbers with more have quarters.
_QUARTERS = 4


def known(labels: np.ndarray, sizes: np.ndarray) -> pd.DataFrame:
    """Returns what is known of all posters: how many genres they have, and how large they are.

    Args:
        labels: [N, G], 0 or 1.
        sizes: int [N, 2], width and height in pixels.
    """
    counts = pd.Series(labels.sum(axis=1).astype(int))
    return pd.DataFrame(
        {
            "genres": counts.clip(upper=3).map({0: "none", 1: "1", 2: "2", 3: "3 or more"}),
            "pixels of the longer side": sizes.max(axis=1),
        }
    )


def read_columns(path: str | os.PathLike, poster_ids: Sequence[str]) -> pd.DataFrame:
    """Reads further columns of posters from a CSV with a column `Id`.

    Returns:
        A row a poster, in the order of `poster_ids`; NaN where the file has none.

    Raises:
        config.UsageError: it cannot be read, or has no such column, or none of the posters.
    """
    try:
        table = pd.read_csv(path, dtype={"Id": str})
    except (OSError, ValueError) as error:
        raise config_lib.UsageError(f"--columns={path}: it cannot be read ({error}).") from error
    if "Id" not in table:
        raise config_lib.UsageError(
            f"--columns={path}: there is no column `Id`; it has {', '.join(table.columns)}."
        )
    table["Id"] = table["Id"].str.replace(r"\.\w+$", "", regex=True)
    table = table.drop_duplicates("Id").set_index("Id")
    if not table.index.isin(poster_ids).any():
        raise config_lib.UsageError(
            f"--columns={path}: none of its Ids is one of the posters, as {poster_ids[0]}."
        )
    return table.reindex(poster_ids).reset_index(drop=True)


def score(columns: pd.DataFrame, labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Scores the parts of the posters that have one value of a column, or numbers of one quarter.

    Args:
        columns: a row a poster.
        labels: [N, G], 0 or 1.
        logits: float [N, G].

    Returns:
        A row a part of at least 20 posters, beside that of the constant predictor of the part.
        Columns without parts, as one with a value a poster, are left out.
    """
    rows = {}
    for name, column in columns.items():
        for value, of_value in _parts(column).items():
            if len(of_value) >= _MIN_POSTERS:
                of_part, shares = labels[of_value], labels[of_value].mean(axis=0)
                model = scores_lib.compute_metrics(of_part, logits[of_value])
                constant = scores_lib.compute_constant_metrics(of_part, shares)
                rows[f"{name}: {value}"] = {
                    "posters": len(of_value),
                    "macro AP": model["macro_ap"],
                    "constant's macro AP": constant["macro_ap"],
                    "micro AP": model["micro_ap"],
                    "constant's micro AP": constant["micro_ap"],
                }
    return pd.DataFrame.from_dict(rows, "index")


def _parts(column: pd.Series) -> dict[str, np.ndarray]:
    """Returns the numbers of the posters of each part, by what they have in common."""
    if column.nunique() <= _MOST_VALUES:
        groups = column.groupby(column).groups
        return {str(value): np.array(rows) for value, rows in groups.items()}
    if not pd.api.types.is_numeric_dtype(column):
        return {}
    quarters = pd.qcut(column, _QUARTERS, duplicates="drop")
    parts = {}
    for i, quarter in enumerate(quarters.cat.categories):
        words = f"over {quarter.left:g}, to {quarter.right:g}" if i else f"to {quarter.right:g}"
        parts[words] = np.flatnonzero(quarters == quarter)
    return parts
