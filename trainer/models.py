"""Models by name.

A model maps uint8 posters [N, S, S, 3] to float32 logits [N, G], one for each genre;
the probability of a genre is the logit's sigmoid.
"""

import keras

from trainer import config, layers

RESCALE = 1 / 255


def create_model(name: str, image_size: int, num_genres: int, precision: str) -> keras.Model:
    """Builds a model with fresh weights.

    Args:
        name: a key of `MODELS`.
        image_size: side S of the input, in pixels.
        num_genres: width G of the output.
        precision: Keras dtype policy, e.g. "mixed_bfloat16".

    Raises:
        config.UsageError: there is no such model.
    """
    if name not in MODELS:
        raise config.UsageError(f"--model={name}: choose one of {', '.join(MODELS)}.")
    return MODELS[name](image_size, num_genres, precision)


def reference_cnn(image_size: int, num_genres: int, precision: str) -> keras.Model:
    """The tutorial's sequential CNN: four convolutions, three dense layers.

    At 350 pixels and 25 genres it has 6,672,889 parameters.
    """
    if image_size < 46:
        raise config.UsageError(
            f"--image_size={image_size}: reference_cnn needs at least 46 pixels."
        )
    stack = [keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")]
    stack.append(keras.layers.Rescaling(RESCALE, dtype=precision))
    for filters, dropout in ((16, 0.3), (32, 0.3), (64, 0.4), (128, 0.5)):
        stack += [
            layers.Conv2D(filters, 3, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(dtype=precision),
            keras.layers.MaxPooling2D(2, dtype=precision),
            layers.Dropout(dropout, dtype=precision),
        ]
    stack.append(keras.layers.Flatten(dtype=precision))
    for _ in range(2):
        stack += [
            keras.layers.Dense(128, activation="relu", dtype=precision),
            layers.FusedBatchNormalization(dtype=precision),
            layers.Dropout(0.5, dtype=precision),
        ]
    stack.append(keras.layers.Dense(num_genres, dtype="float32", name="logits"))
    return keras.Sequential(stack, name="reference_cnn")


MODELS = {"reference_cnn": reference_cnn}
