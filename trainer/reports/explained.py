"""What a run's surest answers rest on, right and wrong ones, for its report."""

import functools
from typing import Any

import tensorflow as tf

from trainer.data import preprocessing
from trainer.reports import analysis, evaluated as evaluated_lib, evidence as evidence_lib

_NUM_ANSWERS = 4  # Right ones, and wrong ones: together the model sees 656 images.


def explain(evaluated: evaluated_lib.Evaluated) -> list[dict[str, Any]]:
    """Returns posters beside maps of what the surest answers rest on, for the report's page.

    The right answers come first, each of another genre, then the wrong ones.
    """
    chosen = [
        answer
        for is_right in (True, False)
        for answer in analysis.surest(evaluated.labels, evaluated.logits, is_right, _NUM_ANSWERS)
    ]
    jpegs = evaluated.read_posters(poster for poster, _ in chosen)
    size = evaluated.config.image_size
    # Called as it is, the model would take nearly twice as long.
    answer = tf.function(
        functools.partial(evaluated.model, training=False),
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
    )
    explained = []
    for poster, genre in chosen:
        pixels = preprocessing.decode_and_resize(jpegs[poster], size)
        evidence = evidence_lib.occlude(answer, pixels.numpy())
        score, hidden = evidence.describe(genre)
        explained.append(
            {
                "id": evaluated.poster_ids[poster],
                "jpeg": evidence_lib.draw_pair(jpegs[poster], evidence, genre),
                "genres": evaluated.genres_of(poster),
                "genre": evaluated.facts["genres"][genre],
                "is_right": bool(evaluated.labels[poster, genre]),
                "score": score,
                "hidden": hidden,
            }
        )
    return explained
