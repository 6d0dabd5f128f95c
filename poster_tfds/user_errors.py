"""How a user's mistake ends `tfds build`: with its message, and without a traceback."""

import json
import sys

from absl import app

from poster_tfds import faults, settings


def install() -> None:
    """Has absl's `app.run`, and with it `tfds build`, end so; the exit status is 1.

    Elsewhere exceptions are raised as ever.
    """
    app.install_exception_handler(_MistakeHandler())


class _MistakeHandler(app.ExceptionHandler):
    def wants(self, exc: Exception) -> bool:
        return _find_message(exc) is not None

    def handle(self, exc: Exception) -> None:
        # absl raises the exception again whatever is done here, so what prints it is replaced.
        sys.excepthook = lambda *_: print(_find_message(exc), file=sys.stderr)


def _find_message(error: Exception) -> str | None:
    """Returns what to tell the user; None if the mistake is not the user's."""
    if isinstance(error, faults.UserError):
        return str(error)
    is_json = isinstance(error, json.JSONDecodeError) and error.doc
    if is_json and any(argument.endswith(error.doc) for argument in sys.argv):
        try:
            settings.parse(error.doc)  # What `--config` gave, and TFDS did not understand.
        except faults.UserError as in_words:
            return str(in_words)
    return None
