"""The order of an epoch: which records a worker reads, one after the other.

A split is cut into lanes of equal size, each a range of its records, which an epoch takes from in
turns. So several workers can read some lanes each, and no others, and still see together what one
device would. Of a lane the sections come in an order of the epoch's own, some at a time in turns,
and then go through its part of the shuffle buffer. A section is a piece of a shard, or several
where a lane has many. All of it is a function of (seed, epoch), whatever is kept of the records and
however many workers there are.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.data import batching as batching_lib, splits

_LANES = 8
_SECTIONS = 16  # Of a lane, at most: each that is kept is a cache of its own.
_SECTIONS_AT_A_TIME = 4  # Of a lane, at most.
_RECORDS_AHEAD = 32  # Read before they are asked for.

# What is kept of a section's records: function of them and of its number in the split.
Keep = Callable[[tf.data.Dataset, int], tf.data.Dataset]


class Lane(NamedTuple):
    """A range of a split's records."""

    number: int
    sections: list[list[splits.Piece]]  # Pieces of the shards that the range is in.
    first_section: int  # Number in the split of the first.

    @property
    def sizes(self) -> list[int]:
        return [sum(piece.take for piece in pieces) for pieces in self.sections]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sections_at_a_time(self) -> int:
        """How many are taken from in turns: of all at a time, their order would not matter."""
        return min(max(len(self.sections) // 4, 1), _SECTIONS_AT_A_TIME)


def lanes(split: splits.Split) -> list[Lane]:
    """Returns the lanes of a split, in its order."""
    count = min(_LANES, split.num_examples)
    # As TFDS divides a split into shards: of so many, each is a lane.
    ends = [0, *(round(split.num_examples * (i + 1) / count) for i in range(count))]
    found, first_section = [], 0
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        pieces = split.pieces(start, end)
        num_sections = min(_SECTIONS, len(pieces))
        borders = [len(pieces) * i // num_sections for i in range(num_sections + 1)]
        sections = [pieces[first:last] for first, last in itertools.pairwise(borders)]
        found.append(Lane(number, sections, first_section))
        first_section += num_sections
    return found


def in_order(
    split_lanes: list[Lane], batching: batching_lib.Batching, keep: Keep | None = None
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function of an epoch's number (int64 scalar) to what it reads of some lanes.

    Before they are put in order, `keep` makes of each section's records what has a cache at its
    end; without it they are read anew in each epoch, as they are.
    """
    readers = [_reader(lane) for lane in split_lanes]
    kept = keep and [
        [keep(read(i), lane.first_section + i) for i in range(len(lane.sections))]
        for lane, read in zip(split_lanes, readers, strict=True)
    ]
    buffer = -(-batching.shuffle_buffer // _LANES)
    # A lane is asked once more, in vain, to be gone through to its end: see `_choose`.
    rounds = max(lane.size for lane in split_lanes) + 1

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        ordered = []
        for i, lane in enumerate(split_lanes):
            seed = batching.epoch_seed(epoch) * _LANES + lane.number
            numbers = _permuted(lane, seed)
            if kept:
                records = _choose(lane, kept[i], numbers)
            else:
                records = _in_turns(lane, numbers, readers[i]).prefetch(_RECORDS_AHEAD)
            ordered.append(batching_lib.shuffled(records, buffer, seed))
        one_round = tf.data.Dataset.from_tensors(tf.range(len(ordered), dtype=tf.int64))
        turns = one_round.repeat(rounds).unbatch()  # Faster than many ranges.
        return tf.data.Dataset.choose_from_datasets(ordered, turns, stop_on_empty_dataset=False)

    return of_epoch


def divisible(
    split: splits.Split, batching: batching_lib.Batching
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function of an epoch's number (int64 scalar) to the records of a split.

    Workers of a tf.data service can divide their pieces, which are in an order of (seed, epoch).
    Each worker has a shuffle buffer of its own.
    """
    sections = [[piece] for piece in split.pieces(0, split.num_examples)]
    all_of_it = Lane(0, sections, 0)
    read = _reader(all_of_it)

    def read_ahead(number):
        return read(number).prefetch(_RECORDS_AHEAD)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Workers divide what is at the source: shuffled behind it, one would ask for all pieces.
        numbers = _permuted(all_of_it, batching.epoch_seed(epoch))
        records = _in_turns(all_of_it, numbers, read_ahead)
        return batching.shuffled(records, epoch)

    return of_epoch


# Reads a section of a lane, by its number there (int64 scalar).
_Reader = Callable[[tf.Tensor], tf.data.Dataset]


def _reader(lane: Lane) -> _Reader:
    """Returns what reads a section, and fails where it has fewer records, as in a cut file."""
    paths, skips, takes = zip(*itertools.chain(*lane.sections), strict=True)
    paths = tf.constant(paths)
    skips, takes = tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)
    borders = tf.constant([0, *itertools.accumulate(map(len, lane.sections))], tf.int64)
    sizes = tf.constant(lane.sizes, tf.int64)

    def read_piece(i):
        records = tf.data.TFRecordDataset(paths[i], buffer_size=splits.READ_BUFFER)
        return records.skip(skips[i]).take(takes[i])

    def read(number):
        if len(lane.sections) == len(skips):  # Each is one piece, which begins sooner.
            records = read_piece(number)
        else:
            pieces = tf.data.Dataset.range(borders[number], borders[number + 1])
            records = pieces.flat_map(read_piece)
        return records.apply(tf.data.experimental.assert_cardinality(sizes[number]))

    return read


def _permuted(lane: Lane, seed: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of a lane's sections in the order of a seed (int64 scalar): int64 [N]."""
    numbers = tf.range(len(lane.sections), dtype=tf.int64)
    return tf.random.experimental.stateless_shuffle(numbers, tf.stack([seed, 0]))


def _in_turns(
    lane: Lane, numbers: tf.Tensor, create: Callable[[tf.Tensor], tf.data.Dataset]
) -> tf.data.Dataset:
    """Takes in turns from what is created of a lane's sections, whose numbers are in an order."""
    chosen = tf.data.Dataset.from_tensor_slices(numbers)
    return chosen.interleave(create, cycle_length=lane.sections_at_a_time, block_length=1)


def _choose(lane: Lane, datasets: list[tf.data.Dataset], numbers: tf.Tensor) -> tf.data.Dataset:
    """Takes what is kept of a lane's sections in the order in which `_in_turns` would read them."""
    sizes = tf.constant(lane.sizes, tf.int64)

    def repeat(number):
        return tf.data.Dataset.from_tensor_slices(tf.fill([sizes[number]], number))

    if lane.sections_at_a_time == 1:  # Without a function an epoch begins sooner.
        turns = tf.data.Dataset.from_tensor_slices(tf.repeat(numbers, tf.gather(sizes, numbers)))
    else:
        turns = _in_turns(lane, numbers, repeat)
    # So is a section: a cache in a file is complete only then.
    turns = turns.concatenate(tf.data.Dataset.range(len(datasets)))
    return tf.data.Dataset.choose_from_datasets(datasets, turns, stop_on_empty_dataset=False)
