"""What is known of a poster, and the ways in which a server does not tell it."""

from typing import Any, NamedTuple


class Genre(NamedTuple):
    """What a model says of a genre for one poster."""

    name: str
    score: float  # Its probability.
    calibrated: float  # The share of posters with such a score that have it.
    is_predicted: bool | None  # Whether that is at least its threshold; None: it has none.


class Answer(NamedTuple):
    """What is known of one poster."""

    genres: list[Genre]  # Best first.
    error: str = ""  # Why there is none.

    def describe(self, top_k: int) -> str:
        """Returns the most probable genres as text, `*` beside those that are predicted."""
        return "".join(
            f" {genre.name:<12} {genre.score:.3f}{'*' if genre.is_predicted else ' '}"
            for genre in self.genres[:top_k]
        )

    def to_json(self, top_k: int) -> dict[str, Any]:
        """Returns the answer, of its genres the most probable, as JSON has it."""
        if self.error:
            return {"error": self.error}
        shown = self.genres[:top_k]
        return {
            "genres": {genre.name: genre.score for genre in shown},
            "calibrated": {genre.name: genre.calibrated for genre in shown},
            "predicted": [genre.name for genre in self.genres if genre.is_predicted],
        }


class ServerError(RuntimeError):
    """A server has not answered a request as it should; the message says what is wrong."""


class BusyError(ServerError):
    """A server has no room for a request, or its connection broke: it may be sent again."""


class SilentError(ServerError):
    """A server cannot be reached, or says nothing in time."""


def from_outputs(outputs) -> list[Answer]:
    """Returns the answers in the outputs of `serving_default`, each with the batch first."""
    scores = outputs["scores"]
    # Exports had neither before they had thresholds.
    calibrated = outputs.get("calibrated", scores)
    predicted = outputs.get("predicted", [[None] * len(row) for row in scores])
    of_genres = zip(outputs["genres"], scores, calibrated, predicted, strict=True)
    answers = []
    for ok, error, row in zip(outputs["ok"], outputs["error"], of_genres, strict=True):
        genres = [
            Genre(_text(name), float(score), float(share), None if is_on is None else bool(is_on))
            for name, score, share, is_on in zip(*row, strict=True)
        ]
        ranked = sorted(genres, key=lambda genre: -genre.score)
        answers.append(Answer(ranked) if ok else Answer([], _text(error)))
    return answers


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
