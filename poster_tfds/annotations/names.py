"""What columns are called."""

import re

EXPECTED_HEADER = "Id,Genre,<genre>,<genre>,... or Id,Genre"
# Most likely first.
_ID_NAMES = (
    "id", "posterid", "imdbid", "movieid", "filmid", "tmdbid", "filename", "file", "fname",
    "imageid", "imagename", "imagefile", "imagepath", "image", "img", "path", "filepath",
    "posterpath", "poster",
)  # fmt: skip
_GENRE_NAMES = (
    "genre", "genres", "genrelist", "genrenames", "label", "labels", "tag", "tags", "category",
    "categories",
)  # fmt: skip
# Columns of film databases that say yes or no of something else.
_FLAG_NAMES = ("adult", "video")
_INDEX = re.compile(r"|index|level\d+|unnamed\d+(level\d+)*|indexlevel\d+")


def is_id_name(name: str) -> bool:
    return _plain(name) in _ID_NAMES


def id_rank(name: str) -> int:
    """Returns how likely a column so called names posters; 0 is most likely."""
    return _ID_NAMES.index(_plain(name))


def is_genre_name(name: str) -> bool:
    return _plain(name) in _GENRE_NAMES


def is_flag_name(name: str) -> bool:
    """Returns whether a 0/1 column may well be about something other than a genre."""
    return _plain(name) in _FLAG_NAMES


def is_index_name(name: str) -> bool:
    """Returns whether a column is a table's index, as pandas writes it."""
    return bool(_INDEX.fullmatch(_plain(name)))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
