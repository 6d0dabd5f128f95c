"""What is known of a poster, and the ways in which a server does not tell it."""

from typing import NamedTuple


class Answer(NamedTuple):
    """What is known of one poster."""

    genres: list[tuple[str, float]]  # With their probabilities, best first.
    error: str = ""  # Why there is none.


class ServerError(RuntimeError):
    """A server has not answered a request as it should; the message says what is wrong."""


class BusyError(ServerError):
    """A server has no room for a request, or its connection broke: it may be sent again."""


class SilentError(ServerError):
    """A server cannot be reached, or says nothing in time."""


def from_outputs(outputs) -> list[Answer]:
    """Returns the answers in the outputs of `serving_default`, each with the batch first."""
    answers = []
    rows = (outputs[name] for name in ("genres", "scores", "ok", "error"))
    for genres, scores, ok, error in zip(*rows, strict=True):
        pairs = zip(map(_text, genres), map(float, scores), strict=True)
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        answers.append(Answer(ranked) if ok else Answer([], _text(error)))
    return answers


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
