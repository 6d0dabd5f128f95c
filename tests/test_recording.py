"""Epochs are scored while the next one trains, and no record is lost or comes twice."""

import contextlib
import threading

import pytest

from tests import conftest
from tests.runs import assert_same_run, metrics, state, steps
from trainer import config, train
from trainer.reports import scores

EPOCH = 3  # Steps.


def go(data_dir, run_dir, **changes):
    settings = {"batch_size": 18, "epochs": 3, "deterministic": True, **changes}
    conftest.train(data_dir, run_dir, **settings)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    go(data_dir, run_dir)
    return run_dir


def recorded(run_dir):
    return [(record["step"], record["split"]) for record in metrics(run_dir)]


def test_an_epoch_is_scored_while_the_next_one_trains(data_dir, tmp_path, whole, monkeypatch):
    """Its scores, here, are not there before the next epoch has begun to train."""
    has_begun, constants = threading.Semaphore(0), []
    train_epoch, compute_metrics = train._train_epoch, scores.compute_metrics
    compute_constant_metrics = scores.compute_constant_metrics

    def train_one_epoch(context, state):
        if state.step:
            assert (state.step, "test") not in recorded(tmp_path)
            has_begun.release()
        if state.step == 2 * EPOCH:
            has_begun.release()  # No epoch follows.
        train_epoch(context, state)

    def compute_late(labels, logits):
        assert has_begun.acquire(timeout=60)
        return compute_metrics(labels, logits)

    def count(labels, base_rates):
        constants.append(len(labels))
        return compute_constant_metrics(labels, base_rates)

    monkeypatch.setattr(train, "_train_epoch", train_one_epoch)
    monkeypatch.setattr(scores, "compute_metrics", compute_late)
    monkeypatch.setattr(scores, "compute_constant_metrics", count)
    go(data_dir, tmp_path)
    assert_same_run(whole, tmp_path)
    assert constants == [conftest.NUM_TEST]  # The constant predictor is scored once.


@pytest.mark.parametrize("epochs", [1, 3])
def test_no_checkpoint_comes_before_the_record_of_an_earlier_epoch(
    data_dir, tmp_path, whole, epochs
):
    """A file that cannot be written stops the run; it goes on as if nothing had happened."""
    blocked = tmp_path / ".metrics.jsonl.incomplete"
    blocked.mkdir(parents=True)
    with pytest.raises(config.UsageError, match=r"metrics\.jsonl could not be written"):
        go(data_dir, tmp_path, epochs=epochs, checkpoint_every_steps=2)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert steps(tmp_path) == [2, EPOCH]
    blocked.rmdir()
    go(data_dir, tmp_path, checkpoint_every_steps=2)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("fails", [True, False])
def test_what_ends_an_epoch_early_leaves_the_record_of_the_one_before(
    data_dir, tmp_path, whole, monkeypatch, fails
):
    """An error, or a stop that is asked for, before the scores are there."""
    is_ending, compute_metrics = threading.Event(), scores.compute_metrics
    train_epoch = train._train_epoch

    def end_the_second_epoch(context, state):
        if state.step:
            is_ending.set()
            state._stop.requested = True
            if fails:
                raise config.UsageError("the second epoch")
        train_epoch(context, state)

    def compute_late(labels, logits):
        assert is_ending.wait(60)
        return compute_metrics(labels, logits)

    with monkeypatch.context() as patched:
        patched.setattr(train, "_train_epoch", end_the_second_epoch)
        patched.setattr(scores, "compute_metrics", compute_late)
        refused = pytest.raises(config.UsageError, match="the second epoch")
        with refused if fails else contextlib.nullcontext():
            go(data_dir, tmp_path, steps_per_call=1)  # Not as many as the machine is fast.
    assert recorded(tmp_path) == [(EPOCH, "train"), (EPOCH, "test")]
    assert steps(tmp_path)[-1] == (EPOCH if fails else EPOCH + 1)
    go(data_dir, tmp_path)
    assert_same_run(whole, tmp_path)


def test_only_some_epochs_are_evaluated_and_always_the_last(data_dir, tmp_path, whole):
    go(data_dir, tmp_path, evaluate_every=2)
    assert metrics(tmp_path) == [r for r in metrics(whole) if r["step"] != EPOCH]
    ours, theirs = state(tmp_path), state(whole)
    assert all((ours[name] == value).all() for name, value in theirs.items())
