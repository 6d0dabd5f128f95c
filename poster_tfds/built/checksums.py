"""The SHA-256 of each shard of a dataset, beside the shards, as `sha256sum --check` reads them."""

import concurrent.futures
import hashlib
from collections.abc import Iterable, Mapping

import tensorflow_datasets as tfds
from etils import epath

from poster_tfds import machine

FILE_NAME = "SHA256SUMS"
_BLOCK = 1 << 20


def of_file(path: epath.PathLike) -> str:
    """Returns a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def of_files(paths: Iterable[epath.Path]) -> dict[str, str]:
    """Returns the SHA-256 of files by their names, using all cores."""
    paths = list(paths)
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool:
        return dict(zip((path.name for path in paths), pool.map(of_file, paths), strict=True))


def of_split(info: tfds.core.SplitInfo, sums: Mapping[str, str]) -> str:
    """Returns a SHA-256 of a split: of its shards' names, numbers of records and checksums.

    Args:
        info: of the split.
        sums: the SHA-256 of shards, by their names; none of a dataset that was built without.
    """
    shards = zip(info.filenames, info.shard_lengths, strict=True)
    lines = sorted(f"{sums.get(name, '')}  {name}  {length}\n" for name, length in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write(directory: epath.Path, sums: dict[str, str]) -> None:
    """Writes the SHA-256 of shards, by their names, into the dataset's directory."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (directory / FILE_NAME).write_text("".join(lines))


def read(directory: epath.Path) -> dict[str, str]:
    """Returns what `write` wrote; nothing if the dataset was built without it."""
    path = directory / FILE_NAME
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
