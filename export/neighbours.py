"""Shows the posters of a folder that are most like given ones or, without any, its duplicates.

python -m export.neighbours --model=exports/imdb --index=posters/Images poster.jpg
python -m export.neighbours --model=exports/imdb --index=posters/Images --picture=duplicates.png
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags

from export import answers as answers_lib, clients, contact_sheet, poster_files, similarity
from trainer import command_line

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Directory of versions (the newest answers), one version, or a run.",
    required=True,
)
_INDEX = flags.DEFINE_string("index", None, "Folder of posters to look through.", required=True)
_K = flags.DEFINE_integer("k", 5, "Posters of the folder to show for each.", lower_bound=1)
_DUPLICATES = flags.DEFINE_float(
    "duplicates",
    None,
    "Similarity, 0 to 1, from which two posters of the folder are duplicates, instead of that of "
    "its posters to copies of half their size.",
    lower_bound=0,
    upper_bound=1,
)
_TOP_K = flags.DEFINE_integer("top_k", 3, "Genres to show for each poster.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a line instead of a table.")
_PICTURE = flags.DEFINE_string(
    "picture",
    None,
    "PNG to write, of the posters side by side; of many, the first "
    f"{contact_sheet.MAX_ROWS} groups and {contact_sheet.MAX_COLUMNS} posters of each.",
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    0,
    "Reduce larger posters to so many pixels, as the dataset did; 0: none.",
    lower_bound=0,
)
# One batch is read and decoded while another is computed.
_BATCH_SIZE, _PARALLEL = 16, 2
_Answers = dict[pathlib.Path, answers_lib.Answer]  # None of duplicates.


def main(arguments: list[str]) -> None:
    """Compares as the flags say; ends with status 1 if a poster cannot be read."""
    if _PICTURE.value and not _PICTURE.value.endswith(".png"):
        sys.exit(f"--picture={_PICTURE.value}: it is a PNG; give it a name that ends in .png.")
    command_line.import_tensorflow()
    from trainer.run import directory

    client = clients.LocalClient.of_path(_MODEL.value)
    embedding_client = similarity.EmbeddingClient(client)
    asked, num_failed = _embed(embedding_client, arguments)
    if arguments and not asked.posters:
        sys.exit(1)
    index, more_failed = _embed(embedding_client, [_INDEX.value])
    if not index.posters:
        sys.exit(f"--index={_INDEX.value}: no poster in it can be read.")
    answers = {}
    if arguments:
        groups = similarity.find_neighbours(asked, index, _K.value)
        shown = {poster for group in groups for poster, _ in [(group.poster, 1), *group.others]}
        answers = dict(_ask(client, sorted(shown)))
    else:
        threshold = _DUPLICATES.value
        if threshold is None:
            threshold = similarity.measure_copies(embedding_client, index, _MAX_SIDE.value)
        groups = similarity.find_duplicates(index, threshold)
        count = f"{len(groups)} among {len(index.posters)} posters"
        print(f"Groups of similarity {threshold:.3f} or more: {count}.", file=sys.stderr)
    for group in groups:
        print(_to_json(group, answers) if _JSON.value else _to_text(group, answers))
    if _PICTURE.value and groups:
        rows = [_to_row(group, answers) for group in groups]
        directory.write_atomically(pathlib.Path(_PICTURE.value), contact_sheet.draw(rows))
    sys.exit(num_failed + more_failed > 0)


def _embed(
    client: similarity.EmbeddingClient, names: Sequence[str]
) -> tuple[similarity.Embedded, int]:
    """Returns the posters of files and folders with their features, and how many have none."""
    files = poster_files.PosterFiles(names)
    posters, features, failed = [], [], 0
    for poster, embedding in _ask(client, list(files)):
        if embedding.error:
            tqdm.tqdm.write(f"{poster}: {embedding.error}", file=sys.stderr)
            failed += 1
        else:
            posters.append(poster)
            features.append(embedding.features)
    if files.passed_over:
        print(files.describe_passed_over(), file=sys.stderr)
    return similarity.Embedded(posters, np.array(features)), failed


def _ask(client, posters: Sequence[pathlib.Path]) -> Iterator[tuple[pathlib.Path, Any]]:
    """Yields each poster with what a client says of it."""
    return tqdm.tqdm(
        clients.ask_all(client, posters, _BATCH_SIZE, _PARALLEL, _MAX_SIDE.value),
        total=len(posters),
        unit="poster",
        leave=False,
        disable=not sys.stderr.isatty(),
    )


def _to_text(group: similarity.Group, answers: _Answers) -> str:
    def describe(poster):
        return f"{poster} {answers[poster].describe(_TOP_K.value) if answers else ''}".rstrip()

    others = [f"  {alike:.3f} {describe(poster)}" for poster, alike in group.others]
    return "\n".join([describe(group.poster), *others])


def _to_json(group: similarity.Group, answers: _Answers) -> str:
    def describe(poster):
        return {"poster": str(poster)} | (answers[poster].to_json(_TOP_K.value) if answers else {})

    others = [describe(poster) | {"similarity": alike} for poster, alike in group.others]
    return json.dumps(describe(group.poster) | {"similar": others})


def _to_row(group: similarity.Group, answers: _Answers) -> list[tuple[pathlib.Path, str]]:
    """Returns a group as `contact_sheet` takes it."""

    def describe(poster, alike=""):
        genres = [genre.name for genre in answers[poster].genres[: _TOP_K.value]] if answers else []
        return poster, f"{alike} {poster.name}\n{', '.join(genres)}".lstrip()

    others = [describe(poster, f"{alike:.3f}") for poster, alike in group.others]
    return [describe(group.poster), *others]


if __name__ == "__main__":
    command_line.run(main, takes_arguments=True)
