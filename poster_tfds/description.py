"""What is in a folder of posters, and how it was understood."""

from poster_tfds import source as source_lib
from poster_tfds.annotations import text_files
from poster_tfds.repeated_ids import Kind

_SHOWN = 12  # Names in a line.


def describe(source: source_lib.PosterSource) -> dict:
    """Returns how a folder was understood, in values that JSON can hold."""
    table, understood = source.table, source.understanding
    names = table.columns
    columns = [names[position] for position in understood.genre_columns]
    return {
        "file": str(table.path),
        "form": table.form,
        "separator": table.separator,
        "encoding": table.encoding,
        "id_column": names[understood.id_column],
        "genre_columns": columns,
        "genre_column": None if understood.genre_column is None else names[understood.genre_column],
        "genre_separator": understood.separator,
        "group_column": None if understood.group_column is None else names[understood.group_column],
        "grouped": source.is_grouped,
        "left_out": [names[position] or "(no name)" for position in understood.left_out],
        "rows": sum(source.kind_counts.values()),
        "repeated": source.kind_counts[Kind.SAME],
        "images_dir": str(source.images_dir),
        "images": source.images.num_files,
        "farthest_share": _farthest_share(source),
        "genres": dict(zip(source.genres, source.genre_counts, strict=True)),
    }


def in_words(facts: dict) -> list[str]:
    form = facts["form"]
    if facts["separator"]:
        separators = text_files.SEPARATORS
        form = f"columns separated by {separators.get(facts['separator'], facts['separator'])}"
    encoding = f", {facts['encoding']}" if facts["encoding"] else ""
    left_out = _some(facts["left_out"])
    lines = [
        f"{facts['file']}: {form}{encoding}, {facts['rows']} rows",
        f"  `{facts['id_column']}` names the posters, {facts['images_dir']} has "
        f"{facts['images']} images",
        f"  {_genres_in_words(facts)}: {_some(list(facts['genres']))}",
    ]
    lines += [f"  left out: {left_out}"] * bool(left_out)
    if facts["group_column"]:
        lines.append(f"  rows of one `{facts['group_column']}` are in one split")
    if share := facts["farthest_share"]:
        lines.append(
            f"  stratified; the genre farthest from its share is {share['genre']}, in "
            f"{share['split']}: {share['wanted']:.1%} wanted, {share['got']:.1%} got, of "
            f"{share['num_posters']} posters"
        )
    return lines


def _farthest_share(source: source_lib.PosterSource) -> dict | None:
    if not (share := source.farthest_share):
        return None
    return {
        **share._asdict(),
        "genre": source.genres[share.genre],
        "split": source_lib.SPLITS[share.split],
    }


def _genres_in_words(facts: dict) -> str:
    number, column = len(facts["genres"]), f"`{facts['genre_column']}`"
    if facts["grouped"]:
        return f"{number} genres, by name, from {column}, a row for each genre of a poster"
    if not facts["genre_columns"]:
        separator = facts["genre_separator"]
        separated = f", separated by {separator!r}" if separator else ""
        return f"{number} genres, by name, from {column}{separated}"
    also = f", which {column} agrees with" if facts["genre_column"] else ""
    return f"{number} genres from 0/1 columns{also}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
