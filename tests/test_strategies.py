"""Every strategy trains as one device would; workers start, stop and end together."""

import json
import signal
import socket

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest, with_tiny_model
from tests.runs import assert_same_run, finish, metrics, start, state, steps, wait_for
from trainer import cluster, config, runtime
from trainer.models import optimizer as optimizer_lib

# Without chance, and the weights must move.
SETTINGS = {
    "model": "smooth_cnn",
    "batch_size": 16,
    "learning_rate": 0.5,
    "weight_average": 0.9,
    "max_steps": 8,
    "epochs": 3,
}
WITHOUT_CHANCE = {"TESTS_WITHOUT_CHANCE": "1"}
MIRRORED = {"strategy": "mirrored", "logical_cpus": 2}


@pytest.fixture(scope="module")
def plain_descent():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(optimizer_lib, "create_optimizer", with_tiny_model.gradient_descent)
        yield


@pytest.fixture(scope="module")
def one_device(plain_descent, data_dir, made_once):
    return made_once("one_device", lambda folder: conftest.train(data_dir, folder, **SETTINGS))


def assert_agree(one_device, run_dir, atol=1e-5):
    """Checks losses and weights, and how far the weights have moved."""
    expected, found = state(one_device), state(run_dir)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)
        if "_variables" in name and 0 < abs(value).max() < 0.01:  # Begun at 0.
            assert abs(found[name] - value).max() < 1000 * atol * abs(value).max(), name
    # Each poster counts once: the constant predictor's scores know nothing of the model.
    for ours, theirs in zip(metrics(one_device), metrics(run_dir), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=atol)
        assert ours["constant"] == pytest.approx(theirs["constant"])


def test_two_replicas_agree_with_one_device(data_dir, tmp_path, one_device, capsys):
    conftest.train(data_dir, tmp_path, **SETTINGS, **MIRRORED)
    printed = capsys.readouterr().out
    assert "strategy mirrored: as --strategy=mirrored says; 2 replica(s)" in printed
    assert_agree(one_device, tmp_path)
    first, last = (state(one_device, step) for step in steps(one_device)[-2:])
    moved = [abs(last[name] - value).max() for name, value in first.items() if "model" in name]
    assert max(moved) > 1e-3


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(count, data_dir, run_dir, environment=None, **settings):
    """Starts workers on loopback; returns them and a function that starts one again."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(count)]}

    def start_worker(index, run_dir=run_dir):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": cluster, "task": task})
        return start(
            data_dir,
            run_dir,
            environment={**(environment or {}), "TF_CONFIG": tf_config},
            **settings,
        )

    return [start_worker(index) for index in range(count)], start_worker


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_workers_agree_with_one_device(data_dir, tmp_path, one_device, count):
    """Two in calls of several steps, four in as many as they agree on."""
    more = {"steps_per_call": 3} if count == 2 else {}
    workers, _ = start_workers(count, data_dir, tmp_path, WITHOUT_CHANCE, **SETTINGS, **more)
    for worker in workers:
        printed = finish(worker)
        assert f"strategy multi_worker: TF_CONFIG names a cluster; {count} replica(s)" in printed
    assert_agree(one_device, tmp_path)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others_and_all_go_on_bit_for_bit(data_dir, tmp_path):
    settings = {
        "batch_size": 16,
        "epochs": 15,
        "deterministic": "true",
        "augment": "flip,crop",
        "mixup": 0.2,
        "checkpoint_every_steps": 2,
    }
    workers, _ = start_workers(
        2, data_dir, tmp_path / "whole", **settings, cache="disk", cache_dir=tmp_path
    )
    for worker in workers:
        finish(worker)
    killed = tmp_path / "killed"
    workers, start_worker = start_workers(2, data_dir, killed, **settings)
    assert wait_for(lambda: len(steps(killed)) == 2, workers[1])
    workers[1].kill()
    finish(workers[1], -signal.SIGKILL)
    printed = finish(workers[0], returncode=1)
    assert "Another worker is gone" in printed and "Traceback" not in printed
    workers = [start_worker(index) for index in range(2)]
    assert all("Going on after step" in finish(worker) for worker in workers)
    assert_same_run(tmp_path / "whole", killed)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_with_a_checkpoint(data_dir, tmp_path):
    """Which all of them must see to go on."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    settings = {"epochs": 100_000, "batch_size": 16}
    workers, start_worker = start_workers(2, data_dir, shared, **settings)
    assert wait_for(lambda: steps(shared), workers[1])
    workers[1].terminate()
    printed = [finish(worker) for worker in workers]
    (step,) = steps(shared)[-1:]
    assert all(f"Stopped after step {step} of" in text for text in printed)
    workers = [start_worker(0), start_worker(1, own)]
    for worker, found in zip(workers, (step, 0), strict=True):
        printed = finish(worker, returncode=1)
        assert f"checkpoints of different steps, 0 and {step} (this one: {found})" in printed


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_votes_are_held_about_once_a_second_whatever_a_step_takes():
    clock = Clock()
    vote = cluster.Vote(tf.distribute.get_strategy(), clock)

    def held(seconds_per_step, count):
        """Returns when votes were held in so many steps."""
        times = []
        for _ in range(count):
            clock.now += seconds_per_step
            if vote.is_due(1):
                assert vote.hold(True, False) == (True, False)
                assert vote.seconds_per_step == pytest.approx(seconds_per_step, abs=2e-6)
                times.append(clock.now)
        return np.diff(times)

    assert held(1 / 64, 1000)[-5:] == pytest.approx([1.0] * 5, abs=1 / 32)
    vote.begin()
    assert held(3.0, 5).tolist() == [3.0] * 4  # Each step.
    vote.begin()
    quick = held(1 / 1024, 5000)
    assert max(quick) <= 1.0 and sum(quick > 0.9) >= 2
    clock.now += 1.0  # One step that takes long is not followed by a thousand.
    assert vote.is_due(1)


def test_multi_worker_without_a_cluster_says_what_to_set(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(config.UsageError, match="set TF_CONFIG"):
        runtime.create_strategy("multi_worker")


WORKER = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("tf_config", "said"),
    [
        ("{worker}", "cannot be used"),
        ({"cluster": {"worker": ["a:1"], "ps": ["b:2"]}, "task": WORKER}, "tasks of type ps"),
        ({"cluster": {"worker": ["localhost"]}, "task": WORKER}, "'localhost' is not HOST:PORT"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}, "no task chief"),
        ({"cluster": {"worker": ["a:1"]}, "task": {**WORKER, "index": 1}}, "no task worker 1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_in_words(tf_config, said, monkeypatch):
    text = tf_config if isinstance(tf_config, str) else json.dumps(tf_config)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(config.UsageError, match=f"TF_CONFIG=.*{said}.*It names all workers"):
        runtime.choose_strategy("auto")


def test_a_port_in_use_is_named(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = {"worker": [f"localhost:{port}", "localhost:1"]}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": WORKER}))
        with pytest.raises(config.UsageError, match=rf"port {port} cannot be had .*in use"):
            runtime.create_strategy("multi_worker")


def test_workers_that_do_not_start_are_named_and_waited_for_no_longer_than_asked(monkeypatch):
    first, second, third = free_ports(3)
    cluster = {"worker": [f"localhost:{port}" for port in (first, second, third)]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": WORKER}))
    said = f"No worker answers at localhost:{third} after --worker_timeout=2"
    with (
        socket.create_server(("localhost", second)),
        pytest.raises(config.UsageError, match=said),
    ):
        runtime.create_strategy("multi_worker", worker_timeout=2)


def test_auto_says_what_it_chose_and_why(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert runtime.choose_strategy("auto") == ("one_device", "there is no GPU")
    assert runtime.choose_strategy("auto", num_gpus=1) == ("one_device", "there is one GPU")
    assert runtime.choose_strategy("auto", num_gpus=4) == ("mirrored", "there are 4 GPUs")


GPUS = ("/device:GPU:0", "/device:GPU:1")
CPUS = ("/device:CPU:0", "/device:CPU:1")


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("one_device", GPUS, GPUS[:1]),
        ("mirrored", GPUS, GPUS),
        ("mirrored", (), CPUS),
    ],
)
def test_replicas_are_on_the_gpus_if_there_are_any(name, gpus, expected):
    strategy = runtime.create_local_strategy(name, gpus, CPUS)
    devices = [device.partition("task:0")[2] for device in strategy.extended.worker_devices]
    assert devices == list(expected)
