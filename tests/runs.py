"""What tests do with runs: start one in a process, kill one, compare two bit by bit."""

import contextlib
import json
import pathlib
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer.run import state as state_lib


def start(data_dir, run_dir, *flags, environment=None, **settings):
    """Starts a training of the tiny model in a process of its own; `finish` reads what it says."""
    command = conftest.trainer_command(data_dir, run_dir, *flags, **settings)
    return conftest.start(*command, **(environment or {}))


def finish(process, returncode=0):
    """Waits for a process to end as it should; returns what it has printed."""
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == returncode, out + err
    return out + err


def wait_for(condition, process, seconds=300):
    """Waits until something is so; returns whether the process still runs then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            process.kill()
            raise AssertionError("this did not happen in time\n" + "".join(process.communicate()))
        if process.poll() is not None:
            return False
        time.sleep(0.002)  # The process needs the cores.
    return process.poll() is None


class Killed(BaseException):
    """Nothing in the trainer catches it: what is on disk stays as a SIGKILL would leave it."""


@contextlib.contextmanager
def killed_after(step):
    """Ends a training in this process, with no word to it, once it has taken so many steps."""
    advance = state_lib.RunState.advance

    def advance_and_end(self, *arguments, **kwargs):
        advance(self, *arguments, **kwargs)
        if self.step >= step:
            raise Killed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(state_lib.RunState, "advance", advance_and_end)
        yield


def steps(run_dir):
    """Returns the steps of the checkpoints of a run, oldest first."""
    directory = pathlib.Path(run_dir) / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("[0-9]*")) if directory.exists() else []


def state(run_dir, step=None):
    """Returns every tensor of a checkpoint, the newest if no step is named."""
    step = steps(run_dir)[-1] if step is None else step
    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints" / f"{step:08}" / "state"))
    names = reader.get_variable_to_shape_map().keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


def metrics(run_dir):
    """Returns the records of a run without what depends on the machine's speed."""
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    records = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    timed = ("images_per_second", "seconds", "flops_per_second", "share_waited")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def tensorboard_steps(run_dir):
    """Returns (split, tag, step) of all that TensorBoard shows but pictures, each once."""
    found = []
    for path in (run_dir / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                # Pictures are those of the last process.
                if value.tag not in ("images_per_second", "posters"):
                    found.append((path.parent.name, value.tag, event.step))
    assert len(found) == len(set(found))
    return sorted(found)


def assert_same_run(one, other):
    """Checks weights, optimizer, random states, losses and metrics bit by bit."""
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert metrics(one) == metrics(other)
    assert tensorboard_steps(one) == tensorboard_steps(other)
