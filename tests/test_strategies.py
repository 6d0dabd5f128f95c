"""Every strategy trains as one device would; workers that are lost come back."""

import json
import signal
import socket

import numpy as np
import pytest
import tensorflow as tf

from tests.test_resume import FLAGS, assert_same_run, finish, metrics, start, state, steps, wait_for
from trainer import cluster, config, runtime

# The last of 510 posters in batches of 48 are 30: of three replicas one has 16, one 14, one none.
SMOOTH = ("--batch_size=48", "--max_steps=20", "--learning_rate=0.01", "--weight_average=0.9")
# In batches of 36 they are 6: the second of two replicas has none.
FLOAT64 = ("--batch_size=36", "--max_steps=20", "--learning_rate=0.01")
MIRRORED = ("--strategy=mirrored", "--logical_cpus=2")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(count, data_dir, run_dir, *flags, **kwargs):
    """Starts workers on loopback; returns them and a function that starts one again."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(count)]}

    def start_worker(index, run_dir=run_dir):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": cluster, "task": task})
        return start(data_dir, run_dir, *flags, TF_CONFIG=tf_config, **kwargs)

    return [start_worker(index) for index in range(count)], start_worker


def start_exact(data_dir, run_dir, network, *flags, **variables):
    module = "tests.exact_trainer"
    return start(data_dir, run_dir, *flags, module=module, EXACT_TRAINER=network, **variables)


@pytest.fixture(scope="module")
def one_device(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_device")
    finish(start_exact(data_dir, run_dir, "smooth", *SMOOTH))
    return run_dir


def assert_agree(one_device, run_dir, atol=1e-5):
    """Checks losses and weights, and how far the weights have moved."""
    expected, found = state(one_device), state(run_dir)
    assert expected.keys() == found.keys()
    # Workers that read lanes of their own answer for a batch's posters in another order.
    logits, labels = (f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in ("logits", "labels"))
    distances = abs(expected[logits][:, None] - found[logits]).max(axis=-1)
    nearest = distances.argmin(axis=1)
    assert len(set(nearest)) == len(nearest) > 0
    for name in (logits, labels):
        found[name] = found[name][nearest]
    for name, value in expected.items():
        if "random" in name:
            continue
        allowed = 100 * atol if name.startswith("logits") else atol
        np.testing.assert_allclose(found[name], value, rtol=0, atol=allowed, err_msg=name)
        if "trainable_variables" in name and abs(value).max() < 0.01:  # Begun at 0.
            assert abs(found[name] - value).max() < 1000 * atol * abs(value).max(), name
    # Each poster counts once: the constant predictor's scores know nothing of the model.
    for ours, theirs in zip(metrics(one_device), metrics(run_dir), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=atol)
        assert ours["constant"] == pytest.approx(theirs["constant"])


def test_two_replicas_agree_with_one_device(data_dir, tmp_path, one_device):
    printed = finish(start_exact(data_dir, tmp_path, "smooth", *SMOOTH, *MIRRORED))
    assert "strategy mirrored: as --strategy=mirrored says; 2 replica(s)" in printed
    assert_agree(one_device, tmp_path)


def test_what_xla_compiles_on_two_replicas_learns_the_same(data_dir, tmp_path):
    """The last batch, of 30, is 24 and 6: only the second replica meets another shape."""
    flags = ("smooth", *SMOOTH, *MIRRORED, "--batch_norm=local")
    finish(start_exact(data_dir, tmp_path / "plain", *flags))
    dump = f"--xla_dump_to={tmp_path / 'modules'} --xla_dump_hlo_as_text"
    compiled = start_exact(data_dir, tmp_path / "xla", *flags, "--jit_compile", XLA_FLAGS=dump)
    finish(compiled)
    assert_agree(tmp_path / "plain", tmp_path / "xla", atol=1e-4)  # XLA's arithmetic is coarser.
    assert len(compiled_modules(tmp_path / "modules", "differentiate")) == 3


def test_xla_compiles_two_shapes_on_one_device(data_dir, tmp_path):
    dump = f"--xla_dump_to={tmp_path / 'modules'} --xla_dump_hlo_as_text"
    flags = ("--max_steps=35", "--batch_size=48", "--jit_compile")
    finish(start(data_dir, tmp_path / "run", *flags, XLA_FLAGS=dump))  # Three epochs and more.
    assert len(compiled_modules(tmp_path / "modules", "replica_step")) == 2


def compiled_modules(folder, function):
    """Returns what XLA has written of each module that it compiled of a function."""
    return list(folder.glob(f"*{function}*.before_optimizations.txt"))


@pytest.mark.parametrize("count", [2, 3])
def test_workers_agree_with_one_device(data_dir, tmp_path, one_device, count):
    """Two in calls of several steps, three in as many as they agree on."""
    flags = (*SMOOTH, "--steps_per_call=5") if count == 2 else SMOOTH
    workers, _ = start_workers(
        count, data_dir, tmp_path, *flags, module="tests.exact_trainer", EXACT_TRAINER="smooth"
    )
    for worker in workers:
        printed = finish(worker)
        assert f"strategy multi_worker: TF_CONFIG names a cluster; {count} replica(s)" in printed
    assert_agree(one_device, tmp_path)


def test_the_reference_cnn_agrees_in_float64(data_dir, tmp_path):
    finish(start_exact(data_dir, tmp_path / "one", "float64", *FLOAT64))
    finish(start_exact(data_dir, tmp_path / "two", "float64", *FLOAT64, *MIRRORED))
    assert_agree(tmp_path / "one", tmp_path / "two")


def test_a_worker_that_is_killed_and_started_again_changes_nothing(data_dir, tmp_path):
    """The uninterrupted run keeps its posters on a disk that both workers write to.

    Of an epoch's last batch, of 6 posters, the second worker has none. The device changes them.
    """
    flags = (*FLAGS, "--batch_size=36", "--augment_on=device")
    workers, _ = start_workers(2, data_dir, tmp_path / "whole", *flags, "--cache=disk")
    for worker in workers:
        finish(worker)
    workers, start_worker = start_workers(2, data_dir, tmp_path / "killed", *flags)
    assert wait_for(lambda: len(steps(tmp_path / "killed")) == 2, workers[1])
    workers[1].kill()
    finish(workers[1], -signal.SIGKILL)
    assert "Going on after step" in finish(start_worker(1))
    printed = finish(workers[0])
    assert "A worker is gone" in printed
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_worker_starts_anew_no_more_often_than_asked(data_dir, tmp_path):
    workers, _ = start_workers(2, data_dir, tmp_path, "--epochs=1000", "--max_restarts=0")
    assert wait_for(lambda: steps(tmp_path), workers[1])
    workers[1].kill()
    finish(workers[1], -signal.SIGKILL)
    printed = finish(workers[0], returncode=1)
    assert "A worker is gone" in printed
    assert "started anew 0 times, as often as --max_restarts=0 allows" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (tf.errors.UnavailableError(None, None, "Connection reset by peer"), True),
        (tf.errors.AbortedError(None, None, "It has likely restarted."), True),
        (tf.errors.InternalError(None, None, "unexpected exception in check alive: gone"), True),
        (tf.errors.InternalError(None, None, "Blas GEMM launch failed"), False),
    ],
)
def test_only_what_a_lost_worker_causes_starts_a_process_anew(error, is_lost, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    expected = cluster.WorkerLostError if is_lost else tf.errors.InternalError
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with pytest.raises(expected), cluster.lost_workers_named(strategy):
        raise error
    # Without other workers none is lost.
    with pytest.raises(type(error)), cluster.lost_workers_named(tf.distribute.get_strategy()):
        raise error


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


def test_a_signal_to_one_worker_stops_all_with_a_checkpoint(data_dir, tmp_path):
    """Which all of them must see to go on."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    workers, start_worker = start_workers(2, data_dir, shared, "--epochs=1000")
    assert wait_for(lambda: steps(shared), workers[1])
    workers[1].terminate()
    printed = [finish(worker) for worker in workers]
    (step,) = steps(shared)[-1:]
    assert all(f"Stopped after step {step} of" in text for text in printed)
    workers = [start_worker(0), start_worker(1, own)]
    for worker, found in zip(workers, (step, 0), strict=True):
        printed = finish(worker, returncode=1)
        assert f"checkpoints of different steps, 0 and {step} (this one: {found})" in printed


def test_a_batch_that_does_not_divide_is_refused(data_dir, tmp_path):
    flags = ("--batch_size=31", "--strategy=mirrored", "--logical_cpus=2")
    printed = finish(start(data_dir, tmp_path, *flags), returncode=1)
    assert "--batch_size=31 does not divide over 2 replicas; take 30 or 32" in printed
    assert "Traceback" not in printed


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
        with pytest.raises(config.UsageError, match=f"port {port} cannot be had .*in use"):
            runtime.create_strategy("multi_worker")


def test_workers_that_do_not_start_are_named_and_waited_for_no_longer_than_asked(
    data_dir, tmp_path
):
    (first, second, third) = free_ports(3)
    cluster = {"worker": [f"localhost:{port}" for port in (first, second, third)]}
    tf_config = json.dumps({"cluster": cluster, "task": WORKER})
    waiting = start(data_dir, tmp_path / "a", TF_CONFIG=tf_config)
    while f"Waiting for the workers at localhost:{second}, localhost:{third}." not in (
        waiting.stderr.readline()
    ):
        assert waiting.poll() is None
    waiting.send_signal(signal.SIGINT)
    assert "Stopped." in finish(waiting, returncode=1)
    with socket.create_server(("localhost", second)):
        patient = start(data_dir, tmp_path / "b", "--worker_timeout=2", TF_CONFIG=tf_config)
        printed = finish(patient, returncode=1)
    assert f"No worker answers at localhost:{third} after --worker_timeout=2" in printed
    assert not (tmp_path / "a").exists()


def test_auto_says_what_it_chose_and_why(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert runtime.choose_strategy("auto") == ("one_device", "there is no GPU")
    assert runtime.choose_strategy("auto", num_gpus=1) == ("one_device", "there is one GPU")
    assert runtime.choose_strategy("auto", num_gpus=4) == ("mirrored", "there are 4 GPUs")
    assert runtime.choose_strategy("tpu") == ("tpu", "as --strategy=tpu says")


GPUS = ["/device:GPU:0", "/device:GPU:1"]
CPUS = ["/device:CPU:0", "/device:CPU:1"]


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("one_device", GPUS, GPUS[:1]),
        ("mirrored", GPUS, GPUS),
        ("mirrored", [], CPUS),
    ],
)
def test_replicas_are_on_the_gpus_if_there_are_any(name, gpus, expected):
    strategy = runtime.create_local_strategy(name, gpus, CPUS)
    devices = [device.partition("task:0")[2] for device in strategy.extended.worker_devices]
    assert devices == expected


def test_one_device_without_a_gpu_has_no_scope():
    assert runtime.create_local_strategy("one_device", [], CPUS) is tf.distribute.get_strategy()


def test_a_tpu_that_is_not_there_is_named(data_dir, tmp_path):
    printed = finish(start(data_dir, tmp_path, "--strategy=tpu", "--tpu=local"), returncode=1)
    assert "--strategy=tpu: no TPU answers at --tpu='local'" in printed
    assert "Traceback" not in printed
    with pytest.raises(config.UsageError, match="--tpu=grpc://localhost:1: no server answers"):
        runtime.create_strategy("tpu", "grpc://localhost:1")
