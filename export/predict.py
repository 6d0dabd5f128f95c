"""Asks an exported model for the genres of posters.

python -m export.predict --model=exports/imdb poster.jpg another.jpg
"""

import json
import pathlib
import sys

from absl import app, flags

from trainer import config as config_lib, startup

_MODEL = flags.DEFINE_string(
    "model", None, "Directory of versions (the newest answers) or one version.", required=True
)
_TOP_K = flags.DEFINE_integer("top_k", 3, "Genres to show for each poster.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a poster instead of a table.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Show TensorFlow's own messages.")


def top_genres(serve, poster: pathlib.Path, top_k: int) -> list[tuple[str, float]]:
    """Returns the most probable genres of a poster and their probabilities, best first.

    Args:
        serve: the signature `serving_default` of a loaded SavedModel.
        poster: path of a JPEG.
        top_k: how many genres to return.

    Raises:
        ValueError: the poster cannot be read or decoded; the message names it.
    """
    import tensorflow as tf

    try:
        answer = serve(image_bytes=tf.constant([poster.read_bytes()]))
    except OSError as error:
        raise ValueError(f"{poster}: {error.strerror}") from error
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{poster}: not a JPEG that decodes") from error
    scores = answer["scores"].numpy()[0]
    genres = answer["genres"].numpy()[0]
    best = scores.argsort()[::-1][:top_k]
    return [(genres[i].decode(), float(scores[i])) for i in best]


def format_row(poster: pathlib.Path, genres: list[tuple[str, float]], width: int) -> str:
    """Returns a line of the table: the poster and its genres."""
    return f"{poster!s:<{width}}" + "".join(f"  {name:<12} {score:.3f}" for name, score in genres)


def main(argv: list[str]) -> None:
    """Predicts as the flags say; ends with status 1 if a poster could not be read."""
    posters = [pathlib.Path(argument) for argument in argv[1:]]
    if not posters:
        sys.exit("Name at least one poster: python -m export.predict --model=DIR poster.jpg ...")
    startup.import_tensorflow(_VERBOSE.value)
    import tensorflow as tf

    from export import saved_model

    try:
        model = tf.saved_model.load(str(saved_model.resolve_version(_MODEL.value)))
    except config_lib.UsageError as error:
        sys.exit(str(error))
    width = max(len(str(poster)) for poster in posters)
    failed = False
    for poster in posters:
        try:
            genres = top_genres(model.signatures["serving_default"], poster, _TOP_K.value)
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        if _JSON.value:
            print(json.dumps({"poster": str(poster), "genres": dict(genres)}))
        else:
            print(format_row(poster, genres, width))
    sys.exit(failed)


if __name__ == "__main__":
    app.run(main)
