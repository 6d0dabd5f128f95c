"""The trainer as a user starts it, but without chance and almost without rounding.

No dropout, plain gradient descent, layers in float64: what may still differ between
strategies is what they do. In float32 this network doubles a rounding error every step
or two, whatever the strategy.
"""

import runpy

import keras

from trainer import layers, models, steps

create_model = models.create_model


def create_exact_model(config, num_genres, precision):
    del precision

    def in_float64(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    model = create_model(config, num_genres, "float64")
    return keras.models.clone_model(model, clone_function=in_float64)


models.create_model = create_exact_model
layers.Dropout.call = lambda self, inputs, training=False: inputs
steps.create_optimizer = lambda config, *_: keras.optimizers.SGD(config.learning_rate)
fused = layers.FusedBatchNormalization.call


def normalize(self, inputs, training=None, mask=None):
    if training and layers._num_replicas() > 1:
        return fused(self, inputs, training, mask)
    return keras.layers.BatchNormalization.call(self, inputs, training, mask)


layers.FusedBatchNormalization.call = normalize
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
