"""What is known of a poster, and the ways in which a server does not tell it."""

from typing import Any, NamedTuple


class Genre(NamedTuple):
    """What a model says of a genre for one poster."""

    name: str
    score: float  # Its probability.
    calibrated: float  # The share of posters with such a score that have it.
    is_predicted: bool  # Whether that is at least its threshold.


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
    names = ("ok", "error", "genres", "scores", "calibrated", "predicted")
    answers = []
    for ok, error, *row in zip(*(outputs[name] for name in names), strict=True):
        genres = [
            Genre(_text(name), float(score), float(calibrated), bool(is_predicted))
            for name, score, calibrated, is_predicted in zip(*row, strict=True)
        ]
        ranked = sorted(genres, key=lambda genre: -genre.score)
        answers.append(Answer(ranked) if ok else Answer([], _text(error)))
    return answers


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
