"""Asks an exported model, or a server that serves it, for the genres of posters.

python -m export.predict --model=exports/imdb poster.jpg folder/
python -m export.predict --server=localhost:8501 --name=imdb folder/ --json
python -m export.predict --server=grpc://localhost:8500 --name=imdb --list=posters.txt --csv
python -m export.predict --model=exports/imdb --explain=explained poster.jpg
"""

import csv
import json
import os
import sys

import tqdm
from absl import flags

from export import answers as answers_lib, clients, poster_files
from trainer import command_line

_MODEL = flags.DEFINE_string(
    "model", None, "Directory of versions (the newest answers) or one version."
)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of a run, to ask without an export.")
_SERVER = flags.DEFINE_string(
    "server", None, "Server to ask: HOST:PORT of its REST port, or grpc://HOST:PORT."
)
_NAME = flags.DEFINE_string("name", "posters", "Name under which the server serves the model.")
_LIST = flags.DEFINE_string(
    "list", None, "File that names a poster on each line; -: standard input."
)
_TOP_K = flags.DEFINE_integer("top_k", 3, "Genres to show for each poster.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a poster instead of a table.")
_CSV = flags.DEFINE_bool(
    "csv", False, "Print CSV: poster, genre, score, calibrated, predicted, error."
)
_ANNOTATIONS = flags.DEFINE_bool(
    "annotations",
    False,
    "Print the predicted genres as CSV that a dataset can be built from: Id, and a column of 0 and "
    "1 for each genre. Posters without an answer are left out.",
)
_THRESHOLD = flags.DEFINE_float(
    "threshold",
    None,
    "Calibrated score, 0 to 1, from which any genre is predicted, instead of its own threshold.",
)
_EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "Directory for a picture of each poster that shows where the model sees the genres that are "
    "printed. The model answers 82 times for each; needs --model or --run_dir.",
)
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


def main(arguments: list[str]) -> None:
    _check_flags(arguments)
    command_line.import_tensorflow()
    asked, failed, ending = 0, 0, ""
    posters = poster_files.PosterFiles(arguments, _LIST.value)
    client = _connect()
    write = _writer()
    explain = _explainer(client)
    try:
        batches = _BATCH_SIZE.value, _PARALLEL.value, _MAX_SIDE.value
        answers = clients.ask_all(client, posters, *batches)
        for poster, answer in tqdm.tqdm(answers, unit="poster", leave=False, disable=None):
            asked += 1
            if answer.error:
                tqdm.tqdm.write(f"{poster}: {answer.error}", file=sys.stderr)
                failed += 1
            write(poster, _predicted(answer))
            explain(poster, answer)
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
        print(posters.describe_passed_over(), file=sys.stderr)
    sys.exit(ending or failed > 0)


def _check_flags(arguments: list[str]) -> None:
    if [_MODEL.value, _RUN_DIR.value, _SERVER.value].count(None) != 2:
        sys.exit("Give one of --model=DIR, --run_dir=DIR and --server=HOST:PORT.")
    if _EXPLAIN.value and _SERVER.value:
        sys.exit(
            f"--explain={_EXPLAIN.value}: it takes many answers, more than a server is asked for. "
            f"Instead of --server={_SERVER.value} give --model=DIR, the directory that it serves."
        )
    if not arguments and not _LIST.value:
        sys.exit("Name posters or folders: python -m export.predict --model=DIR poster.jpg ...")
    if sum((_JSON.value, _CSV.value, _ANNOTATIONS.value)) > 1:
        sys.exit("Give one of --json, --csv and --annotations.")


def _connect():
    if _SERVER.value:
        return clients.connect(_SERVER.value, _NAME.value, _TIMEOUT.value)
    if _RUN_DIR.value:
        return clients.LocalClient.of_run(_RUN_DIR.value)
    from export import saved_model

    return clients.LocalClient.of_version(saved_model.resolve_version(_MODEL.value))


def _predicted(answer: answers_lib.Answer) -> answers_lib.Answer:
    """Returns an answer with the genres that --threshold predicts, if it is given."""
    if _THRESHOLD.value is None:
        return answer
    genres = [
        genre._replace(is_predicted=genre.calibrated >= _THRESHOLD.value) for genre in answer.genres
    ]
    return answer._replace(genres=genres)


def _writer():
    """Returns a function that prints a poster and its answer."""
    rows = csv.writer(sys.stdout)
    columns = []  # Of --annotations, known with the first answer.
    if _CSV.value:
        rows.writerow(["poster", "genre", "score", "calibrated", "predicted", "error"])

    def write(poster, answer):
        if _CSV.value:
            rows.writerows([poster, *genre, ""] for genre in answer.genres[: _TOP_K.value])
            if answer.error:
                rows.writerow([poster, "", "", "", "", answer.error])
        elif _JSON.value:
            print(json.dumps({"poster": str(poster), **answer.to_json(_TOP_K.value)}))
        elif answer.error:
            return
        elif _ANNOTATIONS.value:
            predicted = {genre.name: int(genre.is_predicted) for genre in answer.genres}
            if not columns:
                columns.extend(sorted(predicted))
                rows.writerow(["Id", *columns])
            rows.writerow([poster.name, *map(predicted.get, columns)])
        else:
            print(f"{poster} {answer.describe(_TOP_K.value)}".rstrip())

    return write


def _explainer(client):
    """Returns a function that writes the picture of a poster with an answer, if --explain."""
    if not _EXPLAIN.value:
        return lambda poster, answer: None
    from export import evidence_files

    files = evidence_files.EvidenceFiles(_EXPLAIN.value, client, _MAX_SIDE.value)

    def explain(poster, answer):
        if not answer.error:
            path = files.write(poster, [genre.name for genre in answer.genres[: _TOP_K.value]])
            tqdm.tqdm.write(f"Wrote {path}", file=sys.stderr)

    return explain


if __name__ == "__main__":
    command_line.run(main, takes_arguments=True)
