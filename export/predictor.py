"""Posters to a table of their genres, in one call."""

import os
import pathlib
from collections.abc import Iterable

from export import clients

# Part of the table -> attribute of `answers.Genre`.
_FIELDS = {"score": "score", "calibrated": "calibrated", "predicted": "is_predicted"}


class Predictor:
    """Answers for posters; see `load`."""

    def __init__(self, client: clients.LocalClient):
        self._client = client

    def __call__(
        self,
        paths: Iterable[str | os.PathLike],
        batch_size: int = 8,
        parallel: int = 4,
        max_side: int = 0,
    ):
        """Returns the genres of posters.

        Returns:
            A pandas DataFrame, a row a poster, in their order, with two levels of columns:
            `frame["score"]`, `frame["calibrated"]` and `frame["predicted"]` have a column a genre.
            Posters without an answer have NaN there, and no genre; `frame["error"]` says why.
        """
        import pandas as pd

        paths = list(map(pathlib.Path, paths))
        asked = clients.ask_all(self._client, dict.fromkeys(paths), batch_size, parallel, max_side)
        answers = dict(asked)
        in_order = [answers[path] for path in paths]
        parts = {
            part: pd.DataFrame(
                [{genre.name: getattr(genre, field) for genre in a.genres} for a in in_order],
                paths,
            ).sort_index(axis="columns")
            for part, field in _FIELDS.items()
        }
        parts["predicted"] = parts["predicted"].eq(True)
        frame = pd.concat(parts, axis="columns")
        frame["error"] = [answer.error for answer in in_order]
        return frame


def load(path: str | os.PathLike) -> Predictor:
    """Returns what answers for posters.

        predictor = export.load("exports/imdb")
        frame = predictor(["a.jpg", "b.jpg"])

    The path is a directory of versions, of which the newest answers, one version, or a run.

    Raises:
        config.UsageError: it is none of these.
    """
    return Predictor(clients.LocalClient.of_path(path))
