"""The benchmark measures every stage and says what its figures mean."""

import json
import sys
import types

import keras
import pytest

from tests import conftest
from trainer import config, flops
from trainer.benchmark import __main__ as benchmark, stages
from trainer.models import registry

NAMES = [
    *("read", "parse", "decode", "resize", "cold_pipeline", "fill_rows"),
    *("row_numbers", "warm_pipeline"),
    *("step_resident", "step_fed_cold", "step_fed_warm", "tutorial_loop", "keras_fit"),
]


@pytest.mark.slow
def test_every_stage_is_measured_and_written(data_dir, tmp_path):
    result = conftest.run(
        *(sys.executable, "-m", "trainer.benchmark", "--compare=tutorial,keras_fit"),
        *("--dataset=poster_tfds/synthetic", f"--data_dir={data_dir}", "--seconds=0"),
        *("--image_size=48", "--batch_size=8", f"--json={tmp_path / 'figures.json'}"),
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"] == "CPU" and figures["peak_memory_bytes"] > 10**8
    assert sorted(figures["stages"]) == sorted(NAMES)
    for name, stage in figures["stages"].items():
        assert name in result.stdout
        assert stage.keys() == {"images_per_second", "cpu_ms_per_image", "cores_busy"}
        assert stage["images_per_second"] > 0
        cores = stage["images_per_second"] * stage["cpu_ms_per_image"] / 1000
        assert cores == pytest.approx(stage["cores_busy"])
    assert not result.stderr.strip()


def write_checkout(root, speeds):
    """Writes a checkout whose benchmark has known speeds, by stage and turn."""
    package = root / "trainer" / "benchmark"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(f"""
import json, pathlib, sys
*given, figures = sys.argv[1:]
log = pathlib.Path({str(root)!r}) / "log"
turn = len(log.read_text().splitlines()) if log.exists() else 0
log.open("a").write(" ".join(given) + chr(10))
if "--fail" in given:
    sys.exit("no such flag")
stages = {{name: {{"images_per_second": all[turn]}} for name, all in {speeds!r}.items()}}
pathlib.Path(figures.removeprefix("--json=")).write_text(json.dumps({{"stages": stages}}))
""")
    return root


def test_two_checkouts_take_turns(tmp_path, monkeypatch):
    there = write_checkout(tmp_path / "there", {"step": [10, 20, 40], "gone": [1, 1, 1]})
    here = write_checkout(tmp_path / "here", {"new": [1, 1, 1], "step": [30, 30, 40]})
    monkeypatch.chdir(here)  # What is in the current folder is not what runs.
    table = benchmark.take_turns(there, ["--seconds=0"], 3, here)
    assert table.to_dict("index") == {"step": {"there": 20, "here": 30, "here / there": 1.5}}
    for root in (there, here):
        assert (root / "log").read_text() == 3 * "--seconds=0\n"


def test_a_checkout_that_fails_is_named(tmp_path):
    there = write_checkout(tmp_path / "there", {})
    with pytest.raises(config.UsageError, match=r"there ended with 1\. It printed:\nno such flag"):
        benchmark.take_turns(there, ["--fail"], 1)
    with pytest.raises(config.UsageError, match="git worktree add"):
        benchmark.take_turns(tmp_path, [], 1)


@pytest.mark.slow
def test_flags_are_handed_to_both_checkouts(tmp_path):
    """This one takes its turn, too; --fail is a flag of the other's alone."""
    there = write_checkout(tmp_path / "there", {"step_resident": [1, 1, 1]})
    result = conftest.run(
        *(sys.executable, "-m", "trainer.benchmark", "--seconds=0", "--image_size=48"),
        *("--data_dir=no_such", f"--checkout={there}"),
        check=False,
    )
    assert result.returncode == 1
    assert "no_such" in result.stderr and "Traceback" not in result.stderr
    given = ["--data_dir=no_such", "--image_size=48", "--seconds=0.0"]
    assert sorted((there / "log").read_text().split()) == given


def test_a_peer_that_is_not_known_is_refused(monkeypatch):
    compare = types.SimpleNamespace(value=["keras_fit", "jax"])
    monkeypatch.setattr(benchmark, "_COMPARE", compare)
    with pytest.raises(SystemExit, match="--compare=jax: choose from tutorial, keras_fit"):
        benchmark.main([])


def test_a_turn_counts_what_was_done_while_the_clock_ran():
    calls = []

    def step():
        calls.append(sum(range(10_000)))
        return 7

    turn = stages.take_turn(step, 0.05) + stages.take_turn(step, 0)
    assert turn.images == 7 * (len(calls) - 6)  # Three to warm up, twice.
    assert turn.seconds >= 0.05
    figures = turn.figures()
    assert figures["images_per_second"] == turn.images / turn.seconds
    assert figures["cpu_ms_per_image"] == 1000 * turn.cpu_seconds / turn.images


def test_operations_of_the_reference_cnn():
    """Counted by hand from the tutorial's table: multiplications and additions."""
    convolutions = [
        2 * side**2 * filters * 9 * channels
        for side, channels, filters in ((348, 3, 16), (172, 16, 32), (84, 32, 64), (40, 64, 128))
    ]
    dense = [2 * 51200 * 128, 2 * 128 * 128, 2 * 128 * 25]
    expected = 3 * sum(convolutions + dense) - convolutions[0]
    model = registry.create_model(config.Config(image_size=350), 25, "float32")
    assert flops.training_flops(model) == expected
    assert expected == pytest.approx(2.55e9, rel=0.01)


def test_operations_of_a_layer_count_each_time_that_the_model_itself_calls_it():
    convolution = keras.layers.Conv2D(2, 3, padding="same", use_bias=False)
    images = [keras.Input((size, size, 3)) for size in (4, 8, 16)]
    once, twice = convolution(images[0]), [convolution(image) for image in images[1:]]
    a_pixel = 2 * (3 * 3 * 3) * 2  # Of the result: multiplications and additions.
    assert flops.training_flops(keras.Model(images[0], once)) == 2 * 4**2 * a_pixel
    both = keras.Model(images[1:], twice)
    assert flops.training_flops(both) == 2 * (8**2 + 16**2) * a_pixel


@pytest.mark.parametrize(
    ("cold", "warm", "said"),
    [
        (10, 10, "The training step is the bottleneck"),
        (5, 10, "most of its time is resize (0.70 CPU ms a poster). --cache=memory"),
        (5, 5, "leave out --augment"),
    ],
)
def test_the_bottleneck_is_named_with_its_flag(cold, warm, said):
    costs = {"read": 0.2, "parse": 0.3, "decode": 0.9, "resize": 1.6, "cold_pipeline": 1.7}
    figures = {name: {"cpu_ms_per_image": cost} for name, cost in costs.items()}
    for name, speed in (("resident", 10), ("fed_cold", cold), ("fed_warm", warm)):
        figures[f"step_{name}"] = {"images_per_second": speed}
    assert said in benchmark.explain(figures)
