"""The posters that a command line names: files, folders, and the lines of a list."""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator

from trainer import config as config_lib

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NUM_NAMED = 5  # Of the files that were passed over.


class PosterFiles:
    """Goes through the files that are named, and those in folders that are named.

    A folder without images is given itself, so that it is named among what cannot be read.
    What is hidden inside a folder is left alone. A `list_file` names one more on each line; `-` is
    standard input.

    Attributes:
        passed_over: files in the folders gone through so far that are no images by their suffix.
    """

    def __init__(self, names: Iterable[str], list_file: str | None = None):
        self.passed_over = []
        self._names, self._list_file = names, list_file

    def __iter__(self) -> Iterator[pathlib.Path]:
        for name in itertools.chain(self._names, self._listed()):
            path = pathlib.Path(name)
            yield from self._images_in(path) if path.is_dir() else (path,)

    def describe_passed_over(self) -> str:
        count = len(self.passed_over)
        named = ", ".join(map(str, self.passed_over[:_NUM_NAMED]))
        more = f" and {count - _NUM_NAMED} more" if count > _NUM_NAMED else ""
        return f"Files passed over, no images by their names: {count} ({named}{more})."

    def _images_in(self, folder: pathlib.Path) -> list[pathlib.Path]:
        images = []
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if not hidden and not path.is_dir():
                is_image = path.suffix.lower() in SUFFIXES
                (images if is_image else self.passed_over).append(path)
        return images or [folder]

    def _listed(self) -> Iterator[str]:
        if not self._list_file:
            return
        try:
            is_input = self._list_file == "-"
            with contextlib.nullcontext(sys.stdin) if is_input else open(self._list_file) as lines:
                yield from (line.strip() for line in lines if line.strip())
        except OSError as error:
            raise config_lib.UsageError(f"--list={self._list_file}: {error.strerror}.") from error
