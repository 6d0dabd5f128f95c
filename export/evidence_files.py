"""Pictures of where an exported model sees genres (`--explain`)."""

import io
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
import tensorflow as tf

from export import clients
from poster_tfds import images as images_lib
from trainer import config as config_lib
from trainer.reports import evidence as evidence_lib
from trainer.run import directory as directory_lib

_EPSILON = 1e-7  # About what float32 keeps apart from a score of 1.


class EvidenceFiles:
    """Writes a picture for each poster: itself, and where the model sees its genres.

    Raises:
        config.UsageError: there can be no such directory.
    """

    def __init__(self, directory: str | os.PathLike, client: clients.LocalClient, max_side: int):
        self._score, self._max_side = client.signatures["pixels"], max_side
        self._directory = directory_lib.local_path(directory, "--explain")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise config_lib.UsageError(
                f"--explain={directory}: {error.strerror}. Give a directory for the pictures."
            ) from error
        self._written = set()  # Names, so that posters of different folders do not share one.

    def write(self, poster: pathlib.Path, genres: Sequence[str]) -> pathlib.Path:
        """Writes the picture of a poster with a map for each of these genres.

        Returns:
            Its path: the poster's name, with a number if other posters had the same.
        """
        jpeg = images_lib.as_stored(poster.read_bytes(), self._max_side).jpeg
        with PIL.Image.open(io.BytesIO(jpeg)) as image:
            pixels = np.asarray(image.convert("RGB"))

        def answer(pixels):
            outputs = self._score(pixels=tf.constant(pixels))
            names = list(outputs["genres"][0].numpy())
            shown = [names.index(genre.encode()) for genre in genres]
            shown = np.float64(outputs["scores"].numpy()[:, shown])
            shown = np.clip(shown, _EPSILON, 1 - _EPSILON)
            return np.log(shown / (1 - shown))

        evidence = evidence_lib.occlude(answer, pixels)
        picture = evidence_lib.draw(jpeg, evidence, dict(enumerate(genres)))
        numbered = (f"{poster.stem}-{i}.png" for i in itertools.count(2))
        names = itertools.chain([f"{poster.stem}.png"], numbered)
        name = next(name for name in names if name not in self._written)
        self._written.add(name)
        directory_lib.write_atomically(self._directory / name, picture)
        return self._directory / name
