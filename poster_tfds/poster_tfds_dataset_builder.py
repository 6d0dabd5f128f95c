"""TFDS builder: a CSV of genres and a folder of JPEG posters -> sharded TFRecords."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import shard_utils

from poster_tfds import annotations as annotations_lib, faults, posters, synthetic

_MIN_SHARDS = 16
_MAX_SHARD_BYTES = 128 << 20
_TEST_FRACTION = 0.15


@dataclasses.dataclass(eq=False)
class PosterConfig(tfds.core.BuilderConfig):
    """Where a configuration's posters come from.

    Attributes:
        num_synthetic: how many posters to draw; 0 reads them from `--manual_dir`.
    """

    num_synthetic: int = 0


class Builder(tfds.core.GeneratorBasedBuilder):
    """Posters with their genres."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Reference split of the movie posters; synthetic posters."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
Fetch the posters and name their folder with --manual_dir:

  git clone https://github.com/laxmimerit/Movies-Poster_Dataset
  tfds build poster_tfds --config=imdb --manual_dir=Movies-Poster_Dataset

The folder holds `train.csv` (columns Id, Genre and a 0/1 column for each genre) and
`Images/<Id>.jpg`.
"""
    BUILDER_CONFIGS = [  # noqa: RUF012
        PosterConfig(
            name="imdb",
            description="7254 movie posters, 25 genres, the reference split (repeated rows kept).",
        ),
        PosterConfig(
            name="synthetic",
            description="600 drawn posters, 8 genres, each visible as a coloured sign.",
            num_synthetic=600,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    # The names are those of the CSV's columns, set while building.
                    "genres": tfds.features.Sequence(tfds.features.ClassLabel()),
                    "poster_id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "genres"),
            homepage="https://github.com/laxmimerit/Movies-Poster_Dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        source_dir = self._source_dir(dl_manager)
        csv_path = source_dir / "train.csv"
        if not csv_path.exists():
            raise ValueError(f"No {csv_path}.\n{self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        self.info.features["genres"].feature.names = annotations_lib.read_genres(csv_path)
        rows = list(annotations_lib.read_annotations(csv_path))
        train, test = reference_split(len(rows))
        return {
            "train": self._generate_examples(csv_path, rows, train, later=test),
            "test": self._generate_examples(csv_path, rows, test, later=()),
        }

    def _generate_examples(self, csv_path, rows, indices, later) -> "_Examples":
        return _Examples(csv_path, rows, indices, later)

    def _source_dir(self, dl_manager) -> epath.Path:
        if not self.builder_config.num_synthetic:
            return dl_manager.manual_dir
        directory = dl_manager.download_dir / f"poster_tfds_{self.builder_config.name}"
        synthetic.ensure_posters(directory, self.builder_config.num_synthetic)
        return directory

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, _SizedShards(**vars(download_config)))


def reference_split(num_rows: int) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the row numbers of the train and of the test split.

    Equals scikit-learn's `train_test_split(range(n), random_state=0, test_size=0.15)`,
    which the reference uses.
    """
    order = np.random.RandomState(0).permutation(num_rows)
    num_test = int(np.ceil(num_rows * _TEST_FRACTION))
    return order[num_test:], order[:num_test]


class _Examples:
    """The examples of one split; having a length, they let TFDS show a progress bar.

    At the first fault nothing more is yielded. All that remains, the splits that come
    later included, is checked as well, so that one error names every fault.
    """

    def __init__(
        self,
        csv_path: epath.Path,
        rows: Sequence[annotations_lib.Annotation | faults.Fault],
        indices: Sequence[int],
        later: Sequence[int],
    ):
        self._csv_path = csv_path
        self._rows = rows
        self._indices = indices
        self._later = later

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        checked = self._read_checked(self._indices)
        for row, image in checked:
            if isinstance(image, faults.Fault):
                rest = itertools.chain(checked, self._read_checked(self._later))
                found = [image, *(other for _, other in rest if isinstance(other, faults.Fault))]
                raise faults.PosterDataError(self._csv_path, found)
            # An Id may be repeated, a line cannot.
            yield (
                f"{row.line}:{row.poster_id}",
                {"image": image, "genres": row.genres, "poster_id": row.poster_id},
            )

    def _read_checked(self, indices):
        rows = (self._rows[i] for i in indices)
        return posters.read_checked(rows, self._csv_path.parent / "Images")


@dataclasses.dataclass
class _SizedShards(tfds.download.DownloadConfig):
    """TFDS's own settings, with a number of shards that follows a split's size.

    TFDS ignores `--max_shard_size_mb` and makes two shards of 240 MB; parallel readers
    and several workers want more.
    """

    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig(num_shards=self.num_shards)


class _ShardConfig(shard_utils.ShardConfig):
    def get_number_shards(
        self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
    ) -> int:
        del uses_precise_sharding
        wanted = self.num_shards or max(_MIN_SHARDS, -(-total_size // _MAX_SHARD_BYTES))
        return min(wanted, num_examples)
