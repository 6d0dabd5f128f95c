"""Asks an exported model, or a server that serves it, for the genres of posters.

python -m export.predict --model=exports/imdb poster.jpg folder/
python -m export.predict --server=localhost:8501 --name=imdb folder/ --json
python -m export.predict --server=grpc://localhost:8500 --name=imdb --list=posters.txt --csv
"""

import csv
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from absl import flags

from export import clients, poster_files
from trainer import command_line

_MODEL = flags.DEFINE_string(
    "model", None, "Directory of versions (the newest answers) or one version."
)
_SERVER = flags.DEFINE_string(
    "server", None, "Server to ask: HOST:PORT of its REST port, or grpc://HOST:PORT."
)
_NAME = flags.DEFINE_string("name", "posters", "Name under which the server serves the model.")
_LIST = flags.DEFINE_string(
    "list", None, "File that names a poster on each line; -: standard input."
)
_TOP_K = flags.DEFINE_integer("top_k", 3, "Genres to show for each poster.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a poster instead of a table.")
_CSV = flags.DEFINE_bool("csv", False, "Print CSV: poster, genre, score, error.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Posters a request.", lower_bound=1)
_PARALLEL = flags.DEFINE_integer("parallel", 4, "Requests at a time.", lower_bound=1)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    0,
    "Reduce larger posters to so many pixels, as the dataset did; 0: none.",
    lower_bound=0,
)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 60, "Seconds that a server may take for an answer, all attempts together."
)
_NUM_NAMED = 5  # Of the files that were passed over.


def main(arguments: list[str]) -> None:
    """Predicts as the flags say; ends with status 1 if a poster has no answer or there is none."""
    _check_flags(arguments)
    command_line.import_tensorflow()
    asked, failed, ending = 0, 0, ""
    posters = poster_files.PosterFiles(arguments, _LIST.value)
    client = _connect()
    write = _writer()
    try:
        answers = clients.ask_all(
            client, posters, _BATCH_SIZE.value, _PARALLEL.value, _MAX_SIDE.value
        )
        for poster, answer in tqdm.tqdm(
            answers, unit="poster", leave=False, disable=not sys.stderr.isatty()
        ):
            asked += 1
            if answer.error:
                tqdm.tqdm.write(f"{poster}: {answer.error}", file=sys.stderr)
                failed += 1
            write(poster, answer.genres[: _TOP_K.value], answer.error)
        if not asked:
            ending = f"No posters: --list={_LIST.value} names none."
    except clients.ServerError as error:
        ending = f"{error}\nStopped after {asked} posters." if asked else str(error)
    except OSError as error:
        ending = str(error)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)  # Without waiting for the requests that are on their way.
    if client.sent_again:
        print(f"Requests sent again: {client.sent_again}.", file=sys.stderr)
    if posters.passed_over:
        print(_describe_passed_over(posters.passed_over), file=sys.stderr)
    sys.exit(ending or failed > 0)


def _check_flags(arguments: list[str]) -> None:
    if (_MODEL.value is None) == (_SERVER.value is None):
        sys.exit("Give either --model=DIR or --server=HOST:PORT.")
    if not arguments and not _LIST.value:
        sys.exit("Name posters or folders: python -m export.predict --model=DIR poster.jpg ...")
    if _JSON.value and _CSV.value:
        sys.exit("Give either --json or --csv.")


def _connect():
    if _SERVER.value:
        return clients.connect(_SERVER.value, _NAME.value, _TIMEOUT.value)
    from export import saved_model

    try:
        return clients.SavedModelClient(saved_model.resolve_version(_MODEL.value))
    except OSError as error:
        sys.exit(f"--model={_MODEL.value}: {error}")


def _describe_passed_over(paths: Sequence[pathlib.Path]) -> str:
    named = ", ".join(map(str, paths[:_NUM_NAMED]))
    more = f" and {len(paths) - _NUM_NAMED} more" if len(paths) > _NUM_NAMED else ""
    return f"Files passed over, no images by their names: {len(paths)} ({named}{more})."


def _writer():
    """Returns a function that prints a poster, its genres and its error."""
    rows = csv.writer(sys.stdout)
    if _CSV.value:
        rows.writerow(["poster", "genre", "score", "error"])

    def write(poster, genres, error):
        if _CSV.value:
            for name, score in genres or [("", "")]:
                rows.writerow([poster, name, score, error])
        elif _JSON.value:
            verdict = {"error": error} if error else {"genres": dict(genres)}
            print(json.dumps({"poster": str(poster), **verdict}))
        elif not error:
            print(f"{poster}" + "".join(f"  {name:<12} {score:.3f}" for name, score in genres))

    return write


if __name__ == "__main__":
    command_line.run(main, takes_arguments=True)
