"""The order of an epoch: which records a worker reads, one after the other.

A split is cut into lanes of equal size, each a range of its records, which an epoch takes from in
turns. So several workers can read some lanes each, and no others, and still see together what one
device would. Of a lane the pieces of shards come in an order of the epoch's own, some at a time
in turns, and then go through its part of the shuffle buffer. All of it is a function of (seed,
epoch), whatever is kept of the records and however many workers there are.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.data import batching as batching_lib, splits

_LANES = 8
_PIECES_AT_A_TIME = 4  # Of a lane, at most.
_RECORDS_AHEAD = 32  # Read of a lane before they are asked for.

# What is kept of a piece's records: function of them and of the piece's number in the split.
Keep = Callable[[tf.data.Dataset, int], tf.data.Dataset]


class Lane(NamedTuple):
    """A range of a split's records.

    Attributes:
        number: of the lane.
        pieces: of the shards that the range is in.
        first_piece: number in the split of the first.
    """

    number: int
    pieces: list[splits.Piece]
    first_piece: int

    @property
    def size(self) -> int:
        """How many records it has."""
        return sum(piece.take for piece in self.pieces)

    @property
    def pieces_at_a_time(self) -> int:
        """How many are taken from in turns: of all at a time, their order would not matter."""
        return min(max(len(self.pieces) // 4, 1), _PIECES_AT_A_TIME)


def lanes(split: splits.Split) -> list[Lane]:
    """Returns the lanes of a split, in its order."""
    count = min(_LANES, split.num_examples)
    # As TFDS divides a split into shards: of so many, each is a lane.
    ends = [0, *(round(split.num_examples * (i + 1) / count) for i in range(count))]
    found, first_piece = [], 0
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        found.append(Lane(number, split.pieces(start, end), first_piece))
        first_piece += len(found[-1].pieces)
    return found


def num_open_pieces() -> int:
    """Returns how many pieces are read from in turns, at most."""
    return _LANES * _PIECES_AT_A_TIME


def in_order(
    split_lanes: list[Lane], batching: batching_lib.Batching, keep: Keep | None = None
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns a function of an epoch's number (int64 scalar) to what it reads of some lanes.

    Args:
        split_lanes: those that are read.
        batching: gives the seed and the shuffle buffer of all lanes.
        keep: what becomes of each piece's records before they are put in order, with a cache at
            its end; None: they are read anew in each epoch, as they are.
    """
    kept = [
        keep and [keep(_read(*piece), lane.first_piece + i) for i, piece in enumerate(lane.pieces)]
        for lane in split_lanes
    ]
    buffer = -(-batching.shuffle_buffer // _LANES)
    # A lane is asked once more, in vain, to be gone through to its end: see `_choose`.
    rounds = max(lane.size for lane in split_lanes) + 1

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        ordered = []
        for lane, datasets in zip(split_lanes, kept, strict=True):
            seed = batching.epoch_seed(epoch) * _LANES + lane.number
            num_pieces = len(lane.pieces)
            chosen = tf.data.Dataset.range(num_pieces)
            chosen = batching_lib.shuffled(chosen, num_pieces, seed)
            records = _choose(lane, datasets, chosen) if datasets else _stream(lane, chosen)
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

    Args:
        split: of which all is read.
        batching: gives the seed and the shuffle buffer, that of each worker.
    """
    all_of_it = Lane(0, split.pieces(0, split.num_examples), 0)
    numbers = tf.range(len(all_of_it.pieces), dtype=tf.int64)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Workers divide what is at the source: shuffled behind it, one would ask for all pieces.
        seed = tf.stack([batching.epoch_seed(epoch), 0])
        permuted = tf.random.experimental.stateless_shuffle(numbers, seed)
        records = _stream(all_of_it, tf.data.Dataset.from_tensor_slices(permuted))
        return batching.shuffled(records, epoch)

    return of_epoch


def _stream(lane: Lane, chosen: tf.data.Dataset) -> tf.data.Dataset:
    """Reads a lane's pieces in an order of their numbers."""
    paths, skips, takes = zip(*lane.pieces, strict=True)
    paths = tf.constant(paths)
    skips, takes = tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)

    def read(number):
        return _read(paths[number], skips[number], takes[number])

    return _in_turns(lane, chosen, read).prefetch(_RECORDS_AHEAD)


def _choose(
    lane: Lane, datasets: list[tf.data.Dataset], chosen: tf.data.Dataset
) -> tf.data.Dataset:
    """Takes what is kept of a lane's pieces in the order in which `_stream` would read them."""
    takes = tf.constant([piece.take for piece in lane.pieces], tf.int64)

    def repeat(number):
        return tf.data.Dataset.from_tensor_slices(tf.fill([takes[number]], number))

    turns = _in_turns(lane, chosen, repeat)
    # So is a piece: a cache in a file is complete only then.
    turns = turns.concatenate(tf.data.Dataset.range(len(datasets)))
    return tf.data.Dataset.choose_from_datasets(datasets, turns, stop_on_empty_dataset=False)


def _in_turns(
    lane: Lane, chosen: tf.data.Dataset, create: Callable[[tf.Tensor], tf.data.Dataset]
) -> tf.data.Dataset:
    return chosen.interleave(create, cycle_length=lane.pieces_at_a_time, block_length=1)


def _read(path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
    """Reads a piece; fails if fewer records are there, as where a file is cut between two."""
    records = tf.data.TFRecordDataset(path, buffer_size=splits.READ_BUFFER).skip(skip).take(take)
    return records.apply(tf.data.experimental.assert_cardinality(take))
