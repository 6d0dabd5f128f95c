"""A run's best model gone once through a split."""

import io
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from poster_tfds import origin, source
from trainer import config as config_lib, inference, steps
from trainer.data import pipeline, splits, stream, test_time
from trainer.decisions import decision as decision_lib
from trainer.reports import answers as answers_lib
from trainer.run import checkpoints, directory


class Evaluated(NamedTuple):
    """What the model answered, and what there is to know of the posters."""

    run: directory.RunDirectory
    config: config_lib.Config
    facts: dict[str, Any]  # Of `config.json`, with `step`.
    tta: str  # Variants of each poster that the answers are of, of `config.TTA`.
    split: splits.Split
    train: splits.Split  # What it was trained on.
    answers: answers_lib.Answers
    poster_ids: list[str]  # [N]
    leaked: np.ndarray  # bool [N], whether a poster's bytes are in the train split too.
    sizes: np.ndarray  # int [N, 2], width and height in pixels.
    target_precision: float  # For which thresholds are chosen; 0: for the best F1.
    decision: decision_lib.Decision  # Chosen on other posters, if there are any.
    model: Callable[..., tf.Tensor]  # What answered: uint8 [N, S, S, 3] to logits [N, G].

    @property
    def labels(self) -> np.ndarray:
        return self.answers.labels

    @property
    def logits(self) -> np.ndarray:
        return self.answers.logits

    @property
    def base_rates(self) -> np.ndarray:
        """Each genre's share of the posters that were trained on, float64 [G]."""
        return self.train.base_rates

    @property
    def step(self) -> int:
        """The step that the model is of."""
        return self.facts["step"]

    def genres_of(self, poster: int) -> str:
        """Returns the genres of the poster with this number, in words."""
        names = [self.facts["genres"][genre] for genre in np.flatnonzero(self.labels[poster])]
        return ", ".join(names) or "no genre"

    def read_posters(self, wanted: Iterable[int]) -> dict[int, bytes]:
        """Returns the JPEGs of the posters with these numbers in the split."""
        wanted = set(map(int, wanted))
        with self.split.damage_named():
            examples = enumerate(self.split.read().as_numpy_iterator())
            return {i: example["image"] for i, example in examples if i in wanted}


def evaluate_run(
    run_dir: str | os.PathLike,
    split: str = "",
    data_dir: str = "",
    tta: str = config_lib.NO_TTA,
    target_precision: float = 0.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluated | None:
    """Restores a run's best model in float32 and has it answer for a split.

    Args:
        run_dir: of the run.
        split: a split of its dataset, or a part of one; empty: its test split or, if it has
            none, the one that it was last evaluated on.
        data_dir: where the dataset is built; empty: where the run has read it.
        tta: variants of each poster whose answers are averaged, of `config.TTA`.
        target_precision: for which thresholds are chosen on the validation split; 0: for the
            best F1.
        should_stop: whether to give up, asked again and again.

    Returns:
        The answers, or None if it was given up.

    Raises:
        config.UsageError: there is no such run or split, or the dataset is not there, is
            another now, or is damaged; or there is no validation split for the precision.
    """
    run = directory.RunDirectory(run_dir)
    config, facts = run.read_config()
    if target_precision and not facts["validation_split"]:
        raise config_lib.UsageError(
            f"--target_precision={target_precision:g}: {run.path} has no validation split to "
            f"choose thresholds on. {decision_lib.RECOMMENDATION}"
        )
    split = split or config.test_split or facts["validation_split"] or config.train_split
    train = splits.open_split(config.dataset, data_dir or config.data_dir, config.train_split)
    evaluated = splits.Split(train.builder, split)
    run.check_same_data(train.genres, train.num_examples)
    model, facts = checkpoints.restore_model(run_dir)
    poster_ids, digests, sizes = _read_posters(evaluated)
    leaked = _are_in(train, evaluated, digests)
    # The order of answers is that of `Split.read`.
    model = test_time.averaged(model, tta)
    eval_step = steps.make_eval_step(model, tf.distribute.get_strategy())
    answers = []
    for each in dict.fromkeys([split, facts["validation_split"] or split]):
        asked = splits.Split(train.builder, each)
        of_split = _answer(eval_step, config, asked, f"report on {each}", should_stop)
        if of_split is None:
            return None
        answers.append(of_split)
    if len(answers) > 1:
        decision = decision_lib.choose(
            facts["genres"], *answers[1], target_precision, facts["validation_split"]
        )
    elif facts["validation_split"]:
        why = f"They are chosen on {split}: report on another split."
        decision = decision_lib.undecided(facts["genres"], why)
    else:
        decision = decision_lib.undecided(facts["genres"], decision_lib.RECOMMENDATION)
    return Evaluated(
        run,
        config,
        facts,
        tta,
        evaluated,
        train,
        answers[0],
        poster_ids,
        leaked,
        sizes,
        target_precision,
        decision,
        model,
    )


def _answer(
    eval_step: Callable[..., dict[str, tf.Tensor]],
    config: config_lib.Config,
    split: splits.Split,
    title: str,
    should_stop: Callable[[], bool],
) -> answers_lib.Answers | None:
    """Returns the answers for a split, in its order, or None if `should_stop` said so.

    Raises:
        config.UsageError: the split is damaged.
    """
    with split.damage_named():
        predicted = inference.predict(
            eval_step,
            iter(stream.eval_batches(split, config.image_size, config.batch_size)),
            pipeline.num_eval_steps(split.num_examples, config.batch_size),
            title,
            should_stop,
        )
    return None if predicted is None else answers_lib.Answers(predicted.labels, predicted.outputs)


def _read_posters(split: splits.Split) -> tuple[list[str], list[bytes], np.ndarray]:
    """Returns each poster's Id, digest and size."""
    poster_ids, digests, sizes = [], [], []
    with split.damage_named():
        for example in split.read().as_numpy_iterator():
            poster_ids.append(example["poster_id"].decode())
            digests.append(source.poster_digest(example["image"]))
            with Image.open(io.BytesIO(example["image"])) as image:
                sizes.append(image.size)
    return poster_ids, digests, np.array(sizes)


def _are_in(train: splits.Split, split: splits.Split, digests: list[bytes]) -> np.ndarray:
    """Returns whether each poster of a split was trained on too, bool [N].

    Nothing is read where the build has left out posters that came before.
    """
    if not origin.may_repeat_posters(split.builder) and not split.overlaps(train):
        return np.zeros(len(digests), bool)
    sought, found = set(digests), set()
    with train.damage_named():
        for example in train.read().as_numpy_iterator():
            digest = source.poster_digest(example["image"])
            if digest in sought:
                found.add(digest)
    return np.array([digest in found for digest in digests])
