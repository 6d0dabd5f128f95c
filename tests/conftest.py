"""Data sets and runs that several tests look at, made once by the project's own commands."""

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

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and so what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
PROJECT = pathlib.Path(__file__).resolve().parent.parent
REAL_POSTERS = PROJECT.parent / "shared" / "movie_posters"


@pytest.fixture(autouse=True)
def no_global_seed():
    """Takes back the global seed that a test has set, which other tests' shuffles would see."""
    yield
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(None)


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
def data_dir(tmp_path_factory):
    """A data directory in which `synthetic` is built."""
    directory = tmp_path_factory.mktemp("data")
    tfds_build("--config=synthetic", f"--data_dir={directory}")
    return directory


@pytest.fixture(scope="session")
def synthetic_posters(data_dir):
    """The CSV and JPEGs from which `synthetic` was built."""
    return data_dir / "downloads" / "poster_tfds_synthetic"


@pytest.fixture(scope="session")
def run_dir(data_dir, tmp_path_factory):
    """A short run of the reference CNN on `synthetic`."""
    directory = tmp_path_factory.mktemp("runs") / "synthetic"
    train("--epochs=2", data_dir=data_dir, run_dir=directory)
    return directory


# Of the images that `export_dir` answers for.
MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000


@pytest.fixture(scope="session")
def decided_run(run_dir, data_dir, tmp_path_factory):
    """`run_dir` with thresholds, as if a quarter of its posters had been for validation."""
    from trainer.decisions import decision
    from trainer.reports import evaluated

    directory = tmp_path_factory.mktemp("decided") / "synthetic"
    shutil.copytree(run_dir, directory)
    answered = evaluated.evaluate_run(directory, "train[75%:]", str(data_dir))
    chosen = decision.choose(answered.facts["genres"], *answered.answers, split="train[75%:]")
    decision.write(answered.run.thresholds, chosen, answered.step, answered.tta)
    return directory


@pytest.fixture(scope="session")
def export_dir(decided_run, tmp_path_factory):
    """`decided_run` exported once, with low limits for images."""
    directory = tmp_path_factory.mktemp("exports") / "synthetic"
    limits = (f"--max_image_bytes={MAX_BYTES}", f"--max_image_pixels={MAX_PIXELS}", "--top_k=3")
    flags = (f"--run_dir={decided_run}", f"--export_dir={directory}", *limits)
    run(sys.executable, "-m", "export", *flags)
    return directory


@pytest.fixture(scope="session")
def version(export_dir):
    """What `export_dir` has published."""
    return export_dir / "1"


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


def train(*arguments, data_dir, run_dir, **kwargs):
    """Trains the reference CNN on small pictures of `synthetic`."""
    return run(
        sys.executable,
        "-m",
        "trainer",
        "--dataset=poster_tfds/synthetic",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--preset=reference",
        "--image_size=48",
        "--noreport",
        *arguments,
        **kwargs,
    )
