"""The build with Apache Beam, for posters that one machine should not go through.

A first pipeline checks every poster and leaves what it found in files, which the builder reads.
Then TFDS's own Beam writer makes shards of what is sound.
"""

import collections
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import tensorflow_datasets as tfds
from etils import epath

from poster_tfds import annotations, faults, posters, source as source_lib

_FAULTS, _DROPPED, _COUNTED = "faults", "dropped", "counted"


class Findings(NamedTuple):
    """What is known of all rows once their posters were read.

    Attributes:
        faults: of the rows and their posters.
        dropped: lines of the rows whose poster's bytes came before.
        counts: `duplicates`, `converted` and `damaged` posters.
    """

    faults: list[faults.Fault]
    dropped: set[int]
    counts: collections.Counter


def check(
    source: source_lib.PosterSource,
    config,
    directory: epath.Path,
    download_config: tfds.download.DownloadConfig,
) -> Findings:
    """Reads every poster once; every worker must reach the directory, where it leaves nothing."""
    rows = [(source_lib.SPLITS.index(split), row) for split, row in source.rows_with_split()]
    options = download_config.beam_options
    paths = {tag: directory / f"{tag}.json" for tag in (_FAULTS, _DROPPED, _COUNTED)}
    with beam.Pipeline(runner=download_config.beam_runner, options=options) as pipeline:
        checked = (
            pipeline
            | beam.Create(rows)
            | beam.Reshuffle()
            | beam.FlatMap(_check, source.images_dir, config).with_outputs(_FAULTS, main="sound")
        )
        kept = (
            checked.sound
            | beam.GroupByKey()
            | beam.FlatMap(_keep_first).with_outputs(_DROPPED, main=_COUNTED)
        )
        found = {
            _FAULTS: checked[_FAULTS],
            _DROPPED: kept[_DROPPED],
            _COUNTED: kept[_COUNTED] | beam.combiners.Count.PerElement(),
        }
        for tag, values in found.items():
            _ = (
                values
                | f"All_{tag}" >> beam.combiners.ToList()
                | tag >> beam.Map(_write, paths[tag])
            )
    found = {tag: json.loads(path.read_text()) for tag, path in paths.items()}
    for path in paths.values():
        path.unlink()
    dropped = set(found[_DROPPED])
    return Findings(
        [faults.Fault(*fault) for fault in found[_FAULTS]],
        dropped,
        collections.Counter(dict(found[_COUNTED]), duplicates=len(dropped)),
    )


def examples(
    rows: Iterable[annotations.Annotation], images_dir: epath.Path, config
) -> beam.PTransform:
    """Returns what yields each row as TFDS takes it, for `Builder._generate_examples`."""
    return beam.Create(rows) | beam.Reshuffle() | beam.Map(_read, images_dir, config)


def _check(item, images_dir: epath.Path, config) -> Iterator:
    """Yields a fault, or what tells a poster from others with its place, kind and line."""
    split, row = item
    poster = posters.read_one(row, images_dir, config)
    if isinstance(poster, faults.Fault):
        yield beam.pvalue.TaggedOutput(_FAULTS, poster)
        return
    name = source_lib.poster_digest(poster.jpeg) if config.drop_duplicates else str(row.line)
    yield name, (split, row.line, poster.converted, poster.damaged)


def _keep_first(group) -> Iterator:
    """Yields what is to be counted of the first row with a poster, and the lines of the others."""
    _, places = group
    (_, _, converted, damaged), *others = sorted(places)
    yield from ["converted"] * converted + ["damaged"] * damaged
    for _, line, *_ in others:
        yield beam.pvalue.TaggedOutput(_DROPPED, line)


def _write(values: list, path: epath.Path) -> None:
    path.write_text(json.dumps(values))


def _read(row: annotations.Annotation, images_dir: epath.Path, config) -> tuple[str, dict]:
    poster = posters.read_one(row, images_dir, config)
    if isinstance(poster, faults.Fault):
        raise faults.UserError(f"While the dataset was built, this poster changed: {poster}")
    return source_lib.make_example(row, poster.jpeg)
