"""A run learns, says how well, stops, goes on, and agrees under every strategy."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import conftest
from trainer import config, evaluation, models, runtime, train

SCORES = {"loss", "label_accuracy", "macro_ap", "micro_ap", "lrap"}


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_directory_holds_what_it_promises(run_dir):
    facts = json.loads((run_dir / "config.json").read_text())
    assert facts["config"]["image_size"] == 48
    assert len(facts["genres"]) == 8
    with Image.open(run_dir / "learning_curves.png") as picture:
        assert picture.size[0] > 800
    records = read_metrics(run_dir)
    assert [(r["epoch"], r["step"], r["split"]) for r in records] == [
        (1, 16, "train"),
        (1, 16, "test"),
        (2, 32, "train"),
        (2, 32, "test"),
    ]
    for record in records:
        assert record.keys() >= SCORES
        assert record["images_per_second"] > 0
        assert record["constant"].keys() == SCORES


def test_tensorboard_has_the_scores_beside_the_constants(run_dir):
    expected = {(r["split"], r["step"]): r["macro_ap"] for r in read_metrics(run_dir)}
    found = {}
    for path in (run_dir / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "macro_ap":
                    found[path.parent.name, event.step] = float(tf.make_ndarray(value.tensor))
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert ("constant_test", 32) in found


def test_a_model_rises_well_above_the_constant(data_dir, tmp_path):
    conftest.train("--epochs=40", "--image_size=64", data_dir=data_dir, run_dir=tmp_path)
    last = read_metrics(tmp_path)[-1]
    assert last["macro_ap"] > 2 * last["constant"]["macro_ap"]
    assert last["micro_ap"] > 1.5 * last["constant"]["micro_ap"]
    assert last["lrap"] > 1.3 * last["constant"]["lrap"]


def test_a_stopped_run_goes_on_and_has_each_epoch_once(data_dir, tmp_path):
    run_dir = tmp_path / "run"
    conftest.train("--epochs=3", "--max_steps=20", data_dir=data_dir, run_dir=run_dir)
    assert [r["step"] for r in read_metrics(run_dir)] == [16, 16, 20, 20]
    result = conftest.train("--epochs=3", data_dir=data_dir, run_dir=run_dir)
    assert "Going on after step 20 of 48" in result.stdout
    assert [r["step"] for r in read_metrics(run_dir)] == [16, 16, 20, 20, 32, 32, 48, 48]
    assert (
        "Nothing is left to do"
        in conftest.train("--epochs=3", data_dir=data_dir, run_dir=run_dir).stdout
    )


def test_a_run_is_not_mixed_with_another(data_dir, run_dir):
    before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    other = conftest.train("--learning_rate=0.1", data_dir=data_dir, run_dir=run_dir, check=False)
    again = conftest.train("--noresume", data_dir=data_dir, run_dir=run_dir, check=False)
    assert other.returncode == again.returncode == 1
    assert "--learning_rate: 0.001 then, 0.1 now" in other.stderr
    assert "Traceback" not in other.stderr + again.stderr
    assert "holds a run" in again.stderr
    assert before == {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}


def test_a_dataset_that_is_not_built_gets_its_command(tmp_path):
    result = conftest.run(
        sys.executable,
        "-m",
        "trainer",
        f"--data_dir={tmp_path}",
        "--run_dir=x",
        check=False,
        cwd=tmp_path,
        PYTHONPATH=str(conftest.PROJECT),
    )
    assert result.returncode == 1
    assert f"tfds build poster_tfds --config=imdb --manual_dir=FOLDER --data_dir={tmp_path}" in (
        result.stderr
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_synthetic_builds_itself_and_start_up_is_quiet(tmp_path):
    result = conftest.train("--max_steps=1", data_dir=tmp_path / "d", run_dir=tmp_path / "r")
    assert len(read_metrics(tmp_path / "r")) == 2
    for noise in ("cudart", "cuInit", "oneDNN", "WARNING"):
        assert noise not in result.stderr


def test_help_explains_every_setting():
    text = conftest.run(sys.executable, "-m", "trainer", "--help", check=False).stdout
    for name in config.Config.__dataclass_fields__:
        assert f"--{name}:" in text or f"--[no]{name}:" in text


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"epochs": 0}, "--epochs=0: must be at least 1"),
        ({"precision": "float8"}, "--precision=float8: choose one of auto, float32"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(setting, complaint):
    with pytest.raises(config.UsageError, match=complaint):
        config.Config(**setting)


def make_batches(sizes, seed=0, image_size=46, num_genres=4):
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (n, image_size, image_size, 3)).astype(np.uint8),
            "genres": (rng.random((n, num_genres)) < 0.4).astype(np.float32),
        }
        for n in sizes
    ]


def test_a_step_is_what_keras_would_do():
    """Loss, gradients and Adam against Keras's own `train_on_batch`."""
    (batch,) = make_batches([8])
    ours, theirs = (models.create_model("reference_cnn", 46, 4, "float32") for _ in range(2))
    for model in (ours, theirs):
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
    theirs.set_weights(ours.get_weights())
    theirs.compile(
        keras.optimizers.Adam(1e-3), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    expected_loss = theirs.train_on_batch(batch["image"], batch["genres"])

    optimizer = train.create_optimizer(1e-3, "float32")
    optimizer.build(ours.trainable_variables)
    step = train.make_train_step(ours, optimizer, tf.distribute.get_strategy())
    outputs = step(iter(tf.data.Dataset.from_tensors(batch)))

    labels, logits = evaluation.collect([outputs])
    assert evaluation.compute_metrics(labels, logits)["loss"] == pytest.approx(
        float(expected_loss), rel=1e-5
    )
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5, err_msg=a.path)


OVERFLOW_ON_ONE_REPLICA = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow as tf
from trainer import runtime, train
strategy = runtime.create_strategy("mirrored", logical_cpus=2)
with strategy.scope():
    inputs = keras.Input((2,))
    model = keras.Model({"image": inputs}, keras.layers.Dense(1)(inputs))
    model_on_image = lambda image, training: model({"image": image})
    model_on_image.trainable_variables = model.trainable_variables
    optimizer = train.create_optimizer(1e-3, "mixed_float16")
    optimizer.build(model.trainable_variables)
before = [v.numpy() for v in model.trainable_variables]
scale = float(optimizer.dynamic_scale.numpy())
images = np.ones((4, 2), np.float32)
images[3] = np.inf  # The second replica's half.
examples = {"image": images, "genres": np.zeros((4, 1), np.float32)}
batches = tf.data.Dataset.from_tensor_slices(examples).batch(4, drop_remainder=True)
step = train.make_train_step(model_on_image, optimizer, strategy)
step(iter(strategy.experimental_distribute_dataset(batches)))
for old, variable in zip(before, model.trainable_variables):
    np.testing.assert_array_equal(variable.numpy(), old)
assert float(optimizer.dynamic_scale.numpy()) == scale / 2
print("skipped")
"""


def test_an_overflow_on_one_replica_skips_the_step_on_all():
    result = conftest.run(sys.executable, "-c", OVERFLOW_ON_ONE_REPLICA)
    assert result.stdout.strip() == "skipped"


def test_two_replicas_train_and_evaluate_as_one_would(data_dir, tmp_path):
    """Metrics count each poster once, also where the last batch does not divide evenly."""
    conftest.train(
        "--max_steps=17",
        "--strategy=mirrored",
        "--logical_cpus=2",
        "--batch_size=31",
        data_dir=data_dir,
        run_dir=tmp_path,
    )
    train_record, test_record = read_metrics(tmp_path)
    conftest.train("--max_steps=17", "--batch_size=31", data_dir=data_dir, run_dir=tmp_path / "one")
    one_train, one_test = read_metrics(tmp_path / "one")
    # The constant predictor's scores know nothing of the model: the same labels, once each.
    assert train_record["constant"] == pytest.approx(one_train["constant"])
    assert test_record["constant"] == pytest.approx(one_test["constant"])
    assert np.isfinite(train_record["loss"])


def test_multi_worker_without_a_cluster_says_what_to_set(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(config.UsageError, match="set TF_CONFIG"):
        runtime.create_strategy("multi_worker")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx2", "float32"), ("avx512_bf16", "mixed_bfloat16"), ("amx_bf16", "mixed_bfloat16")],
)
def test_precision_auto_follows_the_cpu(flags, precision, monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: set(flags.split()))
    assert runtime.choose_precision("auto") == precision
    assert runtime.choose_precision("mixed_float16") == "mixed_float16"
