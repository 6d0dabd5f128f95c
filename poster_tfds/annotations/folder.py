"""Where in a folder the annotations and the images are."""

from etils import epath

from poster_tfds import faults, image_files

DEFAULT_FILE = "train.csv"
_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".parquet")
_SHOWN = 12  # Names of a folder's content in a message.


class NoAnnotationsError(faults.UserError):
    """A folder has no file that could have annotations."""


def find_annotations(directory: epath.Path, csv: str = "") -> epath.Path:
    """Returns the file of annotations: `csv`, else `train.csv`, else the only one there is.

    `csv` may be in the folder or anywhere; "~" is expanded.

    Raises:
        faults.UserError: it is not there, or more than one may be meant.
    """
    if csv:
        path = directory / epath.Path(csv).expanduser()
        if not path.is_file():
            raise faults.UserError(
                f'--config: "csv" names {path}, which is no file; {_content(path.parent)}'
            )
        return path
    if (directory / DEFAULT_FILE).is_file():
        return directory / DEFAULT_FILE
    found = [path for path in _entries(directory) if path.name.lower().endswith(_ENDINGS)]
    if len(found) == 1:
        return found[0]
    if found:
        raise faults.UserError(
            f"{directory} has no {DEFAULT_FILE}, but {' and '.join(path.name for path in found)}. "
            f'Say in --config which has the annotations: `"csv": "{found[0].name}"`.'
        )
    raise NoAnnotationsError(
        f"No {directory / DEFAULT_FILE}, nor another file of annotations "
        f"({', '.join(_ENDINGS)}); {_content(directory)}"
    )


def find_images(directory: epath.Path, images: str = "") -> epath.Path:
    """Returns the images' folder: `images`, else `Images/` or `images/`, else what has images.

    That is the only subfolder with images or the folder itself. `images` may be in it or anywhere;
    "~" is expanded, "." is the folder itself.

    Raises:
        faults.UserError: it is not there, or more than one may be meant.
    """
    if images:
        path = directory / epath.Path(images).expanduser()
        if not path.is_dir():
            raise faults.UserError(
                f'--config: "images" names {path}, which is no folder; {_content(path.parent)}'
            )
        return path
    for name in ("Images", "images"):
        if (directory / name).is_dir():
            return directory / name
    entries = _entries(directory)
    found = [path for path in entries if path.is_dir() and image_files.has_images(path)]
    if any(image_files.is_image_name(path.name) for path in entries):
        found.append(directory)
    if len(found) == 1:
        return found[0]
    if found:
        names = [path.name if path != directory else "." for path in found]
        raise faults.UserError(
            f"{directory} has images in {' and in '.join(names)}. Say in --config where the "
            f'posters are: `"images": "{names[0]}"`, or `"images": "."` for all of them.'
        )
    raise faults.UserError(
        f"{directory} has no folder of images, as {directory / 'Images'}; {_content(directory)}"
    )


def _entries(directory: epath.Path) -> list[epath.Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _content(directory: epath.Path) -> str:
    if not directory.is_dir():
        return f"there is no folder {directory}."
    names = [path.name + "/" * path.is_dir() for path in _entries(directory)]
    if not names:
        return f"{directory} is empty."
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{directory} has {', '.join(names[:_SHOWN])}{more}."
