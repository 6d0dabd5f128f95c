"""A dataset, a run and an export that tests look at, made once, and how tests start commands.

`data_dir`, `run_dir` and `export_dir` are shared by all of pytest-xdist's workers. They are small:
64 drawn posters of 32 pixels, and a network of one convolution. A test that trains does so in its
own process by `train`; only what needs a process (signals, several workers, a command line) starts
one, and is marked `slow`.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Tests prove what holds without a GPU, on any machine.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import filelock
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from tests import with_tiny_model

# A shell that starts the tests in the background has them ignore Ctrl-C, and so what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
PROJECT = pathlib.Path(__file__).resolve().parent.parent
REAL_POSTERS = PROJECT.parent / "shared" / "movie_posters"
NUM_POSTERS, NUM_TRAIN, NUM_TEST = 64, 54, 10
# What a test's run has, unless it says otherwise: 6 steps an epoch.
SETTINGS = {
    "dataset": "poster_tfds/synthetic",
    "model": "tiny_cnn",
    "image_size": 32,
    "batch_size": 9,
    "epochs": 2,
    "learning_rate": 0.01,
    "dropout": 0.2,
    "precision": "float32",
}
# Of the images that `export_dir` answers for.
MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000

# Before TensorFlow starts: two replicas of MirroredStrategy, in the process of the tests.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
with_tiny_model.register()


@pytest.fixture(autouse=True)
def no_global_state():
    """Takes back what a test has set for the whole process: the global seed and determinism."""
    yield
    tf.random.set_seed(None)
    if tf_config.is_op_determinism_enabled():
        tf_config.disable_op_determinism()


def run(*command, cwd=PROJECT, check=True, **environment):
    """Runs a command as a user would and returns what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=900,
    )
    if check and result.returncode:
        raise AssertionError(f"{command} failed:\n{result.stdout}\n{result.stderr}")
    return result


def start(*command, cwd=PROJECT, **environment):
    """Starts a command and returns its process."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def trainer_command(data_dir, run_dir, *flags, **settings):
    """Returns the words that train the tiny model in a process of its own."""
    settings = {**SETTINGS, "data_dir": data_dir, **settings}
    return (
        *(sys.executable, "-m", "tests.with_tiny_model", "trainer", "--preset=reference"),
        *(f"--run_dir={run_dir}", "--noreport"),
        *(f"--{name}={value}" for name, value in settings.items()),
        *flags,
    )


def train(data_dir, run_dir, report=False, resume=True, override=False, **settings):
    """Trains the tiny model in this process; returns whether the run is done."""
    from trainer import config, train as train_lib

    return train_lib.train_and_evaluate(
        config.Config(**{**SETTINGS, "data_dir": str(data_dir), **settings}),
        run_dir,
        resume=resume,
        override=override,
        report=report,
    )


def read_metrics(run_dir):
    """Returns the records of `metrics.jsonl`."""
    lines = (pathlib.Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tfds_build(*arguments, **kwargs):
    """Runs `tfds build poster_tfds` with the tool that stands beside this Python."""
    tool = pathlib.Path(sys.executable).with_name("tfds")
    return run(tool, "build", "poster_tfds", *arguments, **kwargs)


def build(posters_dir, data_dir, config, **settings):
    """Builds `poster_tfds` in this process, which spares the time that imports take.

    Args:
        posters_dir: the folder with `train.csv` and `Images/`.
        data_dir: where to build.
        config: the name of a config, or a dict as `--config` takes it as JSON.
        **settings: of TFDS's DownloadConfig.
    """
    import tensorflow_datasets as tfds

    from poster_tfds import poster_tfds_dataset_builder

    if isinstance(config, dict):
        config = poster_tfds_dataset_builder.PosterConfig(**config)
    builder = poster_tfds_dataset_builder.Builder(config=config, data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=posters_dir, **settings)
    )
    return builder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Function of a name and of what fills a folder: it is filled by the first worker to ask."""
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent

    def make(name, fill):
        folder, done = base / name, base / f"{name}.done"
        with filelock.FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def data_dir(made_once):
    """A data directory in which `synthetic` is built, of 64 posters: 54 to train on, 10 to test."""

    def fill(folder):
        from poster_tfds import poster_tfds_dataset_builder

        (config,) = (
            known
            for known in poster_tfds_dataset_builder.Builder.BUILDER_CONFIGS
            if known.name == "synthetic"
        )
        before, config.num_synthetic = config.num_synthetic, NUM_POSTERS
        try:
            build(None, folder, "synthetic")
        finally:
            config.num_synthetic = before

    return made_once("data", fill)


@pytest.fixture(scope="session")
def synthetic_posters(data_dir):
    """The CSV and JPEGs from which `synthetic` was built."""
    return data_dir / "downloads" / "poster_tfds_synthetic"


@pytest.fixture(scope="session")
def run_dir(data_dir, made_once):
    """A short run with a validation split, its report and its thresholds. Copy it to change it."""

    def fill(folder):
        train(
            data_dir,
            folder,
            report=True,
            train_split="train[:75%]",
            validation_split="train[75%:]",
            batch_size=8,
            epochs=40,
            evaluate_every=20,
            learning_rate=0.03,
        )

    return made_once("run", fill)


@pytest.fixture(scope="session")
def export_dir(run_dir, made_once):
    """`run_dir` exported once, with low limits for images."""

    def fill(folder):
        from export import loading, saved_model, server_settings

        saved_model.export_saved_model(
            run_dir, folder, top_k=3, limits=loading.Limits(MAX_BYTES, MAX_PIXELS)
        )
        server_settings.write_server_files(folder, server_settings.CPU, 2)

    return made_once("export", fill)


@pytest.fixture(scope="session")
def version(export_dir):
    """What `export_dir` has published."""
    return export_dir / "1"


@pytest.fixture(scope="session")
def local_client(version):
    """What asks the version in this process."""
    from export import clients

    return clients.LocalClient.of_version(version)


@pytest.fixture(params=["rest", "grpc"])
def wire(request):
    """What serves a model in either protocol."""
    from tests import stand_in_server  # It needs the extra `serving`.

    return stand_in_server.SERVE[request.param]


@pytest.fixture(scope="session")
def real_posters():
    """The real CSV and JPEGs; tests that need them are skipped where they are not."""
    if not REAL_POSTERS.exists():
        message = f"the real posters are not at {REAL_POSTERS}: NOT TESTED on them"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return REAL_POSTERS
