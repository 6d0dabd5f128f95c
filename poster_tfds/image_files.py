"""Which image an Id names, of those that are in a folder."""

import hashlib
import os
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from poster_tfds import object_stores

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_LONGEST_EXTENSION = max(map(len, EXTENSIONS))
_WHOLE_FLOAT = re.compile(r"(\d+)\.0+")
_NOT_UTF_8 = re.compile("[\ud800-\udfff]")
# How a name in the index names its file.
_PATH, _BASE_NAME, _NUMBER = range(3)


class ImageFile(NamedTuple):
    """An image in the images' folder.

    Attributes:
        poster_id: its path in the folder without the extension, or with it where files differ in
            nothing else.
        extension: what follows the poster's Id in the file's name.
    """

    poster_id: str
    extension: str


def poster_path(images_dir: epath.PathLike, row) -> epath.Path:
    return epath.Path(images_dir) / f"{row.poster_id}{row.extension}"


def is_image_name(name: str) -> bool:
    # A name that is not UTF-8 cannot be written in any annotation.
    return (
        name.lower().endswith(EXTENSIONS)
        and not name.startswith(".")
        and (name.isascii() or not _NOT_UTF_8.search(name))
    )


def digest(directory: epath.Path) -> dict[str, int | str]:
    """Returns what tells whether a folder's images are the same: their number, bytes and names."""
    files = num_bytes = total = 0
    for name, entry in _walk(directory):
        size = _num_bytes(entry)
        hashed = hashlib.blake2b(f"{size} {name}".encode(), digest_size=16).digest()
        # A sum does not depend on the order in which a folder is listed.
        total = (total + int.from_bytes(hashed, "big")) % (1 << 128)
        files, num_bytes = files + 1, num_bytes + size
    return {"files": files, "bytes": num_bytes, "digest": f"{total:032x}"}


def has_images(directory: epath.Path) -> bool:
    return next(_walk(directory), None) is not None


class ImageFiles:
    """Finds images by what annotations call them.

    The names are in a temporary file of SQLite, so that memory does not grow with them. Only what
    was found in the folder is ever named.

    Attributes:
        directory: the folder.
        num_files: images in it and in its subfolders.
    """

    def __init__(self, directory: epath.Path):
        self.directory = directory
        self._database = sqlite3.connect("")
        # Without regard to case, for telling what is there instead; `find` compares exactly.
        self._database.execute(
            "CREATE TABLE names (name TEXT COLLATE NOCASE, kind INTEGER, path TEXT, "
            "PRIMARY KEY (name, kind, path)) WITHOUT ROWID"
        )
        files = (name for name, _ in _walk(directory))
        self._database.executemany(
            "INSERT INTO names VALUES (?, ?, ?)", (key for file in files for key in _keys(file))
        )
        count = "SELECT COUNT(*) FROM names WHERE kind = ?"
        (self.num_files,) = self._database.execute(count, (_PATH,)).fetchone()

    def find(self, text: str) -> list[ImageFile]:
        """Returns the images that an Id fits: one, if all is well.

        The Id is the file's name with or without the extension, as a path in the folder or, where
        that is enough to tell, without its subfolders or the leading zeros of a number.
        """
        if "." not in text:
            rows = self._lookup(text)
            if rows == [(text, _PATH, f"{text}.jpg")]:  # Nearly every Id.
                return [ImageFile(text, ".jpg")]
        for candidate in self._candidates(text):
            if found := self._fitting(candidate):
                return found
        return []

    def explain(self, text: str) -> str:
        """Returns in words why an Id fits no image, or several."""
        found = [f"{file.poster_id}{file.extension}" for file in self.find(text)]
        if len(found) > 1:
            return f"`{text}` fits {' and '.join(found)} in {self.directory}; write which"
        if text.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", text):
            return f"`{text}` is not the name of a file in {self.directory}"
        stem, _ = _split(text)
        near = [path for _, _, path in self._lookup(stem)] or [
            path for _, _, path in self._lookup(stem.rsplit("/", 1)[-1])
        ]
        if near:
            there = f"there is {' and '.join(sorted(set(near))[:3])}"
        else:
            (example,) = self._database.execute("SELECT path FROM names LIMIT 1").fetchone() or (
                "",
            )
            there = f"it has {self.num_files} images"
            there += f", such as {example}" if example else ""
        name = text if _split(text)[1] else f"{text}.jpg (.png, ...)"
        return f"no {name} in {self.directory}; {there}"

    def _candidates(self, text: str) -> Iterator[str]:
        yield text
        if match := _WHOLE_FLOAT.fullmatch(text):
            yield match[1]
        if "/" in text or "\\" in text:
            path = text.replace("\\", "/")
            yield path
            path = path.removeprefix("./")
            yield path
            for prefix in (f"{os.fspath(self.directory)}/", f"{self.directory.name}/"):
                if path.startswith(prefix):
                    yield path.removeprefix(prefix)

    def _fitting(self, text: str) -> list[ImageFile]:
        text = unicodedata.normalize("NFC", text)
        stem, extension = _split(text)
        kind, paths = self._best(text)
        if kind == _PATH and len(paths) == 1 and not extension:
            return [ImageFile(*_split(paths[0]))]
        if extension:
            _, same = self._best(stem)
            exact = [path for path in same if path.endswith(extension)]
            paths += exact or [p for p in same if p.lower().endswith(extension.lower())]
        return [self._image_file(path) for path in sorted(paths)]

    def _best(self, name: str) -> tuple[int | None, list[str]]:
        """Returns the files with a name, of those that have it in several ways the fullest."""
        rows = [row for row in self._lookup(name) if row[0] == name]
        kind = rows[0][1] if rows else None
        return kind, [path for _, other, path in rows if other == kind]

    def _lookup(self, name: str) -> list[tuple[str, int, str]]:
        query = "SELECT name, kind, path FROM names WHERE name = ? ORDER BY kind"
        return self._database.execute(query, (name,)).fetchall()

    def _image_file(self, path: str) -> ImageFile:
        stem, extension = _split(path)
        _, same = self._best(unicodedata.normalize("NFC", stem))
        return ImageFile(path, "") if len(same) > 1 else ImageFile(stem, extension)


def _keys(path: str) -> Iterator[tuple[str, int, str]]:
    """Yields (name, kind, path) for each name by which a file may be called."""
    stem = unicodedata.normalize("NFC", _split(path)[0])
    yield stem, _PATH, path
    base = stem.rsplit("/", 1)[-1]
    if base != stem:
        yield base, _BASE_NAME, path
    if base.isdecimal() and (number := base.lstrip("0")) not in ("", base):
        yield number, _NUMBER, path


def _split(name: str) -> tuple[str, str]:
    """Returns a name without and with the extension of an image, if it has one."""
    if "." not in name[-_LONGEST_EXTENSION:]:
        return name, ""  # Most Ids, at a tenth of the time.
    stem, extension = os.path.splitext(name)
    return (stem, extension) if extension.lower() in EXTENSIONS else (name, "")


def _walk(directory: epath.Path) -> Iterator[tuple[str, os.DirEntry | epath.Path]]:
    """Yields name, relative to the folder, and entry of each image in it and its subfolders.

    What begins with a dot is passed over; links are followed, each folder once.
    """
    visited = set()
    waiting = [("", os.fspath(directory))]
    while waiting:
        prefix, folder = waiting.pop()
        if (real := os.path.realpath(folder)) in visited:
            continue
        visited.add(real)
        # One entry at a time is in memory where the file system is a local one.
        is_remote = object_stores.is_on_one(folder)
        for entry in epath.Path(folder).iterdir() if is_remote else os.scandir(folder):
            if is_image_name(entry.name):
                yield prefix + entry.name, entry
            elif not entry.name.startswith(".") and entry.is_dir():
                waiting.append((f"{prefix}{entry.name}/", os.fspath(entry)))


def _num_bytes(entry: os.DirEntry | epath.Path) -> int:
    """Returns the size of a file; 0 where a link leads nowhere, or asking takes a request each."""
    try:
        return entry.stat().st_size if isinstance(entry, os.DirEntry) else 0
    except OSError:
        return 0
