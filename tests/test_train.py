"""A run learns, says how well, stops, goes on, and agrees under every strategy."""

import json
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import conftest
from trainer import config, runtime, train
from trainer.run import checkpoints

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


def test_tensorboard_has_all_of_a_run_in_one_file_a_split(run_dir):
    """Scores beside the constant predictor's, speed, learning rate, settings and posters."""
    files = {path.parent.name: path for path in (run_dir / "tensorboard").rglob("events*")}
    assert len(list((run_dir / "tensorboard").rglob("events*"))) == len(files) == 2
    scalars, tags = {}, {"train": set(), "test": set()}
    for split, path in files.items():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tags[split].add(value.tag)
                if value.metadata.plugin_data.plugin_name == "scalars" or (
                    not value.metadata.plugin_data.plugin_name and value.tensor.dtype == 1
                ):
                    scalars[split, event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    for record in read_metrics(run_dir):
        place = record["split"], record["step"]
        assert scalars[(*place, "macro_ap")] == pytest.approx(record["macro_ap"])
        assert scalars[(*place, "constant/loss")] == pytest.approx(record["constant"]["loss"])
        assert scalars[(*place, "images_per_second")] == pytest.approx(record["images_per_second"])
    assert scalars["train", 32, "learning_rate"] == pytest.approx(1e-3)
    assert "posters" in tags["test"]
    assert any("hparams" in tag for tag in tags["test"])


def test_a_model_rises_well_above_the_constant(data_dir, tmp_path):
    flags = ("--epochs=20", "--image_size=64", "--batch_size=16")
    conftest.train(*flags, data_dir=data_dir, run_dir=tmp_path)
    last = read_metrics(tmp_path)[-1]
    assert last["macro_ap"] > 1.7 * last["constant"]["macro_ap"]
    assert last["micro_ap"] > 1.3 * last["constant"]["micro_ap"]
    assert last["lrap"] > 1.2 * last["constant"]["lrap"]


def test_a_stopped_run_goes_on_and_has_each_epoch_once(data_dir, tmp_path, capsys):
    def go_on(**settings):
        settings = {"dataset": "poster_tfds/synthetic", "image_size": 48, "epochs": 3, **settings}
        train.train_and_evaluate(
            config.Config(data_dir=str(data_dir), **settings), tmp_path, report=False
        )
        return [r["step"] for r in read_metrics(tmp_path)], capsys.readouterr().out

    steps, _ = go_on(max_steps=20)
    assert steps == [16, 16, 20, 20]
    leftover = tmp_path / "checkpoints" / ".incomplete-00000021"  # Of a killed run.
    leftover.mkdir()
    steps, printed = go_on()
    assert not leftover.exists()
    assert "Going on after step 20 of 48" in printed
    assert steps == [16, 16, 20, 20, 32, 32, 48, 48]
    assert "all 48 steps are done" in go_on()[1]
    seconds = [record["seconds"] for record in read_metrics(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


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


def test_synthetic_builds_itself_and_start_up_is_quiet(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # With which the other tests keep it quiet.
    result = conftest.train("--max_steps=1", data_dir=tmp_path / "d", run_dir=tmp_path / "r")
    assert len(read_metrics(tmp_path / "r")) == 2
    for noise in ("cudart", "cuInit", "oneDNN", "WARNING"):
        assert noise not in result.stderr


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
        ({"layer_decay": 1.5}, "--layer_decay=1.5: must be at most 1"),
        ({"freeze": "backbone", "augment": "flip,crop"}, "choose --augment=flip"),
        ({"freeze": "backbone", "data_service": "grpc://a:1"}, "leave out --data_service"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(setting, complaint):
    with pytest.raises(config.UsageError, match=complaint):
        config.Config(**setting)


def test_xla_with_several_replicas_and_shared_statistics_is_refused(data_dir, tmp_path):
    result = conftest.train(
        "--jit_compile",
        "--strategy=mirrored",
        "--logical_cpus=2",
        data_dir=data_dir,
        run_dir=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert "--jit_compile on 2 replicas: " in result.stderr
    assert "Add --batch_norm=local" in result.stderr
    assert "Traceback" not in result.stderr


def test_deterministic_runs_end_with_the_same_bits(data_dir, tmp_path):
    """With dropout and augmentation; the second from another cache and in other calls."""
    flags = ("--deterministic", "--max_steps=20", "--augment=flip,crop,color,erase")
    for run_dir, more in (
        ("a", ("--steps_per_call=1",)),
        ("b", ("--cache=disk", "--steps_per_call=7")),
    ):
        conftest.train(
            *flags, "--shuffle_buffer=510", *more, data_dir=data_dir, run_dir=tmp_path / run_dir
        )
    (one, _), (two, _) = (checkpoints.restore_model(tmp_path / name) for name in "ab")
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert not (tmp_path / "b" / "cache").exists()
    with Image.open(tmp_path / "a" / "augmentation.png") as picture:
        assert picture.size[0] > 800
    scores = [
        [{key: record[key] for key in SCORES} for record in read_metrics(tmp_path / name)]
        for name in "ab"
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("capabilities", "cpu_flags", "precision"),
    [
        ([], "fma avx2", "float32"),
        ([], "avx512_bf16", "mixed_bfloat16"),
        ([], "amx_bf16", "mixed_bfloat16"),
        ([(6, 1)], "avx512_bf16", "float32"),
        ([(7, 0)], "avx512_bf16", "mixed_float16"),
        ([(7, 5)], "", "mixed_float16"),
        ([(8, 0)], "", "mixed_bfloat16"),
        ([(8, 9), (12, 0)], "", "mixed_bfloat16"),
        ([(9, 0), (7, 5)], "", "mixed_float16"),  # All must compute in it.
        ([(0, 0)], "", "float32"),  # A GPU that says nothing of itself.
    ],
)
def test_precision_auto_follows_the_hardware(capabilities, cpu_flags, precision):
    hardware = runtime.Hardware(False, capabilities, set(cpu_flags.split()))
    assert runtime.choose_precision("auto", hardware) == precision
    assert runtime.choose_precision("mixed_float16", hardware) == "mixed_float16"
    on_tpu = hardware._replace(has_tpu=True)
    assert runtime.choose_precision("auto", on_tpu) == "mixed_bfloat16"


def test_the_hardware_here_has_no_gpu():
    hardware = runtime.find_hardware()
    assert (hardware.has_tpu, hardware.capabilities) == (False, [])
    assert "sse2" in hardware.cpu_flags or "asimd" in hardware.cpu_flags


IN_A_NOTEBOOK = """
import asyncio, os, signal, sys, threading
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from trainer import config, train

settings = dict(dataset="poster_tfds/synthetic", data_dir=sys.argv[1], image_size=48, max_steps=1)

def run(name, **changes):
    train.train_and_evaluate(
        config.Config(**settings, **changes), os.path.join(sys.argv[2], name), report=False
    )

async def in_an_event_loop():
    loop, stops = asyncio.get_running_loop(), []
    loop.add_signal_handler(signal.SIGTERM, stops.append, "loop")
    run("loop")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    assert stops == ["loop"]

interrupt = signal.getsignal(signal.SIGINT)
asyncio.run(in_an_event_loop())
thread = threading.Thread(target=run, args=("thread",))
thread.start()
thread.join()
assert signal.getsignal(signal.SIGINT) is interrupt
try:
    run("divided", strategy="mirrored", logical_cpus=2)
except config.UsageError as error:
    print(error)
print(*sorted(os.listdir(sys.argv[2])))
"""


def test_runs_in_a_notebook_leave_signals_as_they_were(data_dir, tmp_path):
    """In a running event loop, then in a thread of the same process."""
    result = conftest.run(sys.executable, "-c", IN_A_NOTEBOOK, data_dir, tmp_path)
    assert "--logical_cpus=2: TensorFlow has used the CPU in this process" in result.stdout
    assert result.stdout.splitlines()[-1] == "loop thread"
    for name in ("loop", "thread"):
        assert [record["step"] for record in read_metrics(tmp_path / name)] == [1, 1]
