"""A run learns, says how well, and refuses what cannot be."""

import asyncio
import json
import os
import re
import signal
import sys
import threading

import pytest
import tensorflow as tf
from PIL import Image

from tests import conftest
from trainer import config, runtime

SCORES = {"loss", "label_accuracy", "macro_ap", "micro_ap", "lrap"}


def test_a_run_directory_holds_what_it_promises(run_dir):
    facts = json.loads((run_dir / "config.json").read_text())
    assert facts["config"]["image_size"] == 32
    assert len(facts["genres"]) == 8
    with Image.open(run_dir / "learning_curves.png") as picture:
        assert picture.size[0] > 800
    records = conftest.read_metrics(run_dir)
    splits = ("train[:75%]", "train[75%:]", "test")
    assert [(r["epoch"], r["step"], r["split"]) for r in records] == [
        (epoch, 5 * epoch, split) for epoch in (20, 40) for split in splits
    ]
    for record in records:
        scores = {"loss"} if record["split"] == splits[0] else SCORES
        assert record.keys() & SCORES == scores
        assert record["images_per_second"] > 0
        assert record["constant"].keys() == scores
    assert records[0]["learning_rate"] == pytest.approx(0.03)


def test_tensorboard_has_all_of_a_run_in_one_file_a_split(run_dir):
    """Scores beside the constant predictor's, speed, learning rate, settings and posters."""
    files = {path.parent.name: path for path in (run_dir / "tensorboard").rglob("events*")}
    assert len(list((run_dir / "tensorboard").rglob("events*"))) == len(files) == 3
    scalars, tags = {}, set()
    for split, path in files.items():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tags.add(value.tag)
                if value.tensor.dtype == tf.float32.as_datatype_enum:
                    scalars[split, event.step, value.tag] = tf.make_ndarray(value.tensor)
    for record in conftest.read_metrics(run_dir):
        place = record["split"], record["step"]
        for name in record.keys() & SCORES:
            assert scalars[(*place, name)] == pytest.approx(record[name])
            assert scalars[(*place, f"constant/{name}")] == pytest.approx(record["constant"][name])
        assert scalars[(*place, "images_per_second")] == pytest.approx(record["images_per_second"])
    assert scalars["train[:75%]", 200, "learning_rate"] == pytest.approx(0.03)
    assert "posters" in tags and any("hparams" in tag for tag in tags)


def test_a_model_rises_well_above_the_constant(data_dir, tmp_path):
    conftest.train(
        data_dir, tmp_path, epochs=60, learning_rate=0.03, dropout=0.0, evaluate_every=60
    )
    last = conftest.read_metrics(tmp_path)[-1]
    assert last["split"] == "test"
    for name, factor in (("macro_ap", 1.5), ("micro_ap", 1.5), ("lrap", 1.3)):
        assert last[name] > factor * last["constant"][name]


def test_a_run_is_not_mixed_with_another(data_dir, run_dir):
    before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    splits = {"train_split": "train[:75%]", "validation_split": "train[75%:]", "batch_size": 8}
    with pytest.raises(config.UsageError, match=r"--learning_rate: 0\.03 then, 0\.1 now"):
        conftest.train(data_dir, run_dir, **splits, learning_rate=0.1)
    with pytest.raises(config.UsageError, match="holds a run"):
        conftest.train(data_dir, run_dir, **splits, resume=False)
    assert before == {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}


def test_a_dataset_that_is_not_built_gets_its_command(tmp_path):
    said = f"tfds build poster_tfds --config=imdb --manual_dir=FOLDER --data_dir={tmp_path}"
    with pytest.raises(config.UsageError, match=re.escape(said)):
        conftest.train(tmp_path, tmp_path / "run", dataset="poster_tfds/imdb")
    assert not (tmp_path / "run").exists()


def test_help_explains_every_setting():
    text = conftest.run(sys.executable, "-m", "trainer", "--help", check=False).stdout
    for name in config.Config.__dataclass_fields__:
        assert len(re.findall(rf"^  --(\[no\])?{name}\b", text, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"epochs": 0}, "--epochs=0: must be at least 1"),
        ({"precision": "float8"}, "--precision=float8: choose one of auto, float32"),
        ({"dropout": 1.0}, "--dropout=1.0: must be less than 1"),
        ({"freeze": "backbone", "augment": "flip,crop"}, "choose --augment=flip"),
        ({"freeze": "backbone", "data_service": "grpc://a:1"}, "leave out --data_service"),
        ({"head_epochs": 3, "freeze": "backbone"}, "leave out --freeze=backbone"),
        ({"head_epochs": 3, "init_from": "runs/a"}, "leave out --init_from=runs/a"),
        ({"jit_compile": True, "accumulate_steps": 2}, "leave out --jit_compile"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(setting, complaint):
    with pytest.raises(config.UsageError, match=complaint):
        config.Config(**setting)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"jit_compile": True, "batch_size": 8},
            "--jit_compile is for one replica, and here are 2",
        ),
        ({"batch_size": 31}, "--batch_size=31 does not divide over 2 replicas; take 30 or 32"),
    ],
)
def test_what_two_replicas_cannot_do_is_refused(tmp_path, settings, complaint):
    with pytest.raises(config.UsageError, match=complaint):
        conftest.train(tmp_path, tmp_path, strategy="mirrored", logical_cpus=2, **settings)


@pytest.mark.parametrize(
    ("capabilities", "cpu_flags", "precision"),
    [
        ([], "fma avx2", "float32"),
        ([], "avx512_bf16", "mixed_bfloat16"),
        ([(6, 1)], "avx512_bf16", "float32"),
        ([(7, 0)], "avx512_bf16", "mixed_float16"),
        ([(8, 0)], "", "mixed_bfloat16"),
        ([(8, 9), (12, 0)], "", "mixed_bfloat16"),
        ([(9, 0), (7, 5)], "", "mixed_float16"),  # All must compute in it.
        ([(0, 0)], "", "float32"),  # A GPU that says nothing of itself.
    ],
)
def test_precision_auto_follows_the_hardware(capabilities, cpu_flags, precision):
    hardware = runtime.Hardware(capabilities, set(cpu_flags.split()))
    assert runtime.choose_precision("auto", hardware) == precision
    assert runtime.choose_precision("mixed_float16", hardware) == "mixed_float16"


def test_the_hardware_here_has_no_gpu():
    hardware = runtime.find_hardware()
    assert hardware.capabilities == []
    assert "sse2" in hardware.cpu_flags or "asimd" in hardware.cpu_flags


def test_runs_in_a_notebook_leave_signals_as_they_were(data_dir, tmp_path):
    """In a running event loop, then in a thread of the same process."""
    interrupt = signal.getsignal(signal.SIGINT)

    async def in_an_event_loop():
        loop, stops = asyncio.get_running_loop(), []
        loop.add_signal_handler(signal.SIGTERM, stops.append, "loop")
        conftest.train(data_dir, tmp_path / "loop", max_steps=1)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert stops == ["loop"]
        loop.remove_signal_handler(signal.SIGTERM)

    asyncio.run(in_an_event_loop())
    arguments = {"data_dir": data_dir, "run_dir": tmp_path / "thread", "max_steps": 1}
    thread = threading.Thread(target=conftest.train, kwargs=arguments)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is interrupt
    for name in ("loop", "thread"):
        assert [r["step"] for r in conftest.read_metrics(tmp_path / name)] == [1, 1]


@pytest.mark.slow
def test_synthetic_builds_itself_and_start_up_is_quiet(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # With which the other tests keep it quiet.
    result = conftest.run(
        *(sys.executable, "-m", "trainer", "--dataset=poster_tfds/synthetic", "--max_steps=1"),
        *(f"--data_dir={tmp_path / 'd'}", f"--run_dir={tmp_path / 'r'}", "--image_size=48"),
        "--noreport",
    )
    assert len(conftest.read_metrics(tmp_path / "r")) == 2
    for noise in ("cudart", "cuInit", "oneDNN", "WARNING"):
        assert noise not in result.stderr
