"""The trainer as a user starts it, without chance and with rounding errors that do not grow.

No dropout, plain gradient descent: what may still differ between strategies is what they
do. ReLU and max pooling have kinks, though: where rounding moves a value over one, its
gradient goes elsewhere, and an error of 1e-7 is one of 1e-3 some steps later, whatever the
strategy. EXACT_TRAINER names the way around them:

    smooth     in float32, with softplus and mean pooling in their place
    float64    the reference CNN as it is, in float64, where no value is moved over a kink
"""

import os
import runpy

import keras

from trainer.models import layers, optimizer, registry

_IS_SMOOTH = {"smooth": True, "float64": False}[os.environ["EXACT_TRAINER"]]
create_model = registry.create_model
normalize = layers.FusedBatchNormalization.call


def create_exact_model(config, num_genres, precision, network=None):
    del precision, network

    def clone(layer):
        settings = layer.get_config()
        if not _IS_SMOOTH:
            return type(layer).from_config({**settings, "dtype": "float64"})
        if settings.get("activation") == "relu":
            settings["activation"] = "softplus"
        if isinstance(layer, keras.layers.MaxPooling2D):
            return keras.layers.AveragePooling2D.from_config(settings)
        return type(layer).from_config(settings)

    model = create_model(config, num_genres, "float32")
    return keras.models.clone_model(model, clone_function=clone)


def normalize_in_float64(self, inputs, training=None, mask=None):
    """The fused kernel has no float64."""
    if training and layers._num_replicas() > 1:
        return normalize(self, inputs, training, mask)
    return keras.layers.BatchNormalization.call(self, inputs, training, mask)


registry.create_model = create_exact_model
layers.Dropout.call = lambda self, inputs, training=False: inputs
optimizer.create_optimizer = lambda config, *_: keras.optimizers.SGD(config.learning_rate)
if not _IS_SMOOTH:
    layers.FusedBatchNormalization.call = normalize_in_float64
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
