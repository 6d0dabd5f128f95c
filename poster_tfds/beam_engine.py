"""The build as an Apache Beam pipeline, for posters that one machine should not go through.

It gives the same examples in each split as the engine in the builder.
"""

import json

import apache_beam as beam
from etils import epath

from poster_tfds import faults, posters, source as source_lib

_OUTCOME_FILE = "outcome.json"
_FAULTS = "faults"


def split_transforms(
    source: source_lib.PosterSource, config, data_path: epath.Path
) -> dict[str, beam.PTransform]:
    """Returns what yields the (key, example) pairs of each split.

    Args:
        source: the rows.
        config: a `PosterConfig`.
        data_path: where the build writes; what was found wrong goes there too, for
            `collect_outcome`.
    """
    checked = _CheckedRows(source, config, data_path / _OUTCOME_FILE)
    return {split: _Examples(split, checked, source.images_dir) for split in source.num_rows}


def collect_outcome(data_path: epath.Path) -> tuple[list[faults.Fault], int]:
    """Returns the faults and the number of duplicates that a finished pipeline has found."""
    path = data_path / _OUTCOME_FILE
    outcome = json.loads(path.read_text())
    path.unlink()
    return [faults.Fault(*fault) for fault in outcome[_FAULTS]], outcome["duplicates"]


class _CheckedRows:
    """The (split, row) pairs whose posters are sound and no duplicates.

    They are made once in a pipeline, whichever split asks first.
    """

    def __init__(self, source: source_lib.PosterSource, config, outcome_path: epath.Path):
        self._source = source
        self._drop_duplicates = config.drop_duplicates
        self._outcome_path = outcome_path
        self._rows = None

    def in_pipeline(self, pipeline: beam.Pipeline) -> beam.PCollection:
        if self._rows is None:
            self._rows = self._build(pipeline)
        return self._rows

    def _build(self, pipeline: beam.Pipeline) -> beam.PCollection:
        checked = (
            pipeline
            | "Splits" >> beam.Create(list(self._source.num_rows))
            | "ReadRows" >> beam.FlatMap(_read_rows, self._source)
            | "SpreadRows" >> beam.Reshuffle()
            | "Check" >> beam.FlatMap(_check, self._source).with_outputs(_FAULTS, main="sound")
        )
        rows = checked.sound
        num_duplicates = pipeline | "NoDuplicates" >> beam.Create([0])
        if self._drop_duplicates:
            groups = rows | "ByPoster" >> beam.GroupByKey()
            rows = groups | "KeepFirst" >> beam.Map(_keep_first)
            num_duplicates = groups | "CountOthers" >> beam.Map(lambda group: len(group[1]) - 1)
        else:
            rows = rows | "DropDigest" >> beam.Values()
        found = checked[_FAULTS] | "AllFaults" >> beam.combiners.ToList()
        _ = (
            num_duplicates
            | "AllDuplicates" >> beam.CombineGlobally(sum)
            | "WriteOutcome"
            >> beam.Map(_write_outcome, beam.pvalue.AsSingleton(found), self._outcome_path)
        )
        return rows


class _Examples(beam.PTransform):
    def __init__(self, split: str, checked: _CheckedRows, images_dir: epath.Path):
        super().__init__()
        self._split = split
        self._checked = checked
        self._images_dir = images_dir

    def expand(self, begin):
        return (
            self._checked.in_pipeline(begin.pipeline)
            | beam.Filter(lambda item, split: item[0] == split, self._split)
            | beam.Map(_load, self._images_dir)
        )


def _read_rows(split: str, source: source_lib.PosterSource):
    for row in source.rows(split):
        yield split, row


def _check(item, source: source_lib.PosterSource):
    """Yields (digest, (split, row)), or a fault."""
    split, row = item
    image = posters.read_one(row, source.images_dir)
    if isinstance(image, faults.Fault):
        yield beam.pvalue.TaggedOutput(_FAULTS, tuple(image))
    else:
        yield source_lib.poster_digest(image), (split, row)


def _keep_first(group):
    """Keeps, of rows with the same poster, the one that the other engine meets first."""
    return min(group[1], key=lambda item: (source_lib.SPLITS.index(item[0]), item[1].line))


def _load(item, images_dir: epath.Path):
    row = item[1]
    return source_lib.make_example(row, posters.poster_path(images_dir, row.poster_id).read_bytes())


def _write_outcome(num_duplicates: int, found, path: epath.Path) -> None:
    path.write_text(json.dumps({_FAULTS: found, "duplicates": num_duplicates}))
