"""The doctor tries what training needs, tells right from wrong, and goes on after a failure."""

import json
import math
import re
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import conftest
from trainer.config import UsageError
from trainer.data import splits
from trainer.doctor import checks, findings, speeds

CHECKS = (
    *("disk", "overflow in float16", "replicas", "kernels exist: compact", "kernels run: compact"),
    *("peak memory", "largest batch", "determinism"),
)


@pytest.mark.slow
def test_this_machine_is_well(data_dir, tmp_path):
    result = conftest.run(
        *(sys.executable, "-m", "trainer.doctor", "--precision=float32"),
        *(f"--data_dir={data_dir}", f"--checks={','.join(CHECKS)}"),
        f"--json={tmp_path / 'doctor.json'}",
    )
    written = json.loads((tmp_path / "doctor.json").read_text())
    outcomes = {name: finding["outcome"] for name, finding in written["findings"].items()}
    for_gpus = {"kernels run: compact", "largest batch"}
    assert outcomes == {
        name: findings.LEFT_OUT if name in for_gpus else findings.PASSED for name in CHECKS
    }
    assert "2 CPUs" in written["findings"]["replicas"]["detail"]
    assert written["machine"]["precision"] == "float32, as --precision=float32 says"
    for name, fact in (*written["machine"].items(), *outcomes.items()):
        assert name in result.stdout
        assert fact.split()[0] in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert f"{len(CHECKS) - 2} passed, 0 FAILED, 2 left out" in result.stdout
    assert "Recommended flags: none: the step was not timed" in result.stdout
    assert not result.stderr.strip()


def test_checks_are_chosen_by_how_they_begin():
    known = {"disk": well, "kernels run: a": well, "kernels run: b": well}
    assert list(findings.choose(known, ["kernels"])) == ["kernels run: a", "kernels run: b"]
    assert findings.choose(known, []) == known
    with pytest.raises(UsageError, match=r"--checks=blood: no check begins so; .*\n  disk\n"):
        findings.choose(known, ["disk", "blood"])


def raises(error):
    def check():
        raise error

    return check


def well():
    return findings.judge(True, "well")


def test_a_failure_does_not_stop_the_others():
    told = {}
    error = ValueError("Graph execution error:\n\nDetected at node x\nOut of memory\n")
    failing = {"a": raises(error), "b": well, "c": raises(RuntimeError())}
    found = findings.run_checks(failing, 60, told.__setitem__)
    assert (
        told
        == found
        == {
            "a": findings.Finding(findings.FAILED, "ValueError: Out of memory"),
            "b": findings.Finding(findings.PASSED, "well"),
            "c": findings.Finding(findings.FAILED, "RuntimeError: no message"),
        }
    )


def test_ctrl_c_ends_with_what_was_found():
    stopped = {"a": well, "b": raises(KeyboardInterrupt()), "c": raises(AssertionError())}
    found = findings.run_checks(stopped, 60, lambda name, finding: None)
    assert [finding.outcome for finding in found.values()] == ["passed", "left out", "left out"]


def test_no_check_is_begun_when_the_time_is_over():
    found = findings.run_checks({"a": raises(AssertionError())}, 0, lambda name, finding: None)
    assert found["a"].outcome == findings.LEFT_OUT and "--minutes" in found["a"].detail


def test_operations_without_a_gpu_kernel_are_named():
    if checks.find_missing_gpu_kernels(_graph(tf.linalg.matmul, tf.float16, tf.float16)):
        pytest.skip("this build of TensorFlow has no kernels for GPUs")
    decode = tf.function(lambda data: tf.io.decode_jpeg(data))  # Called from another function.
    graph = _graph(decode, tf.string)
    assert {name.split("(")[0] for name in checks.find_missing_gpu_kernels(graph)} == {"DecodeJpeg"}


def _graph(function, *dtypes):
    shape = [] if tf.string in dtypes else [2, 2]
    specs = [tf.TensorSpec(shape, dtype) for dtype in dtypes]
    return tf.function(function).get_concrete_function(*specs).graph.as_graph_def()


@pytest.mark.slow
def test_the_tolerance_tells_another_training_from_rounding():
    """Twice the learning rate is seen, and so is one weight that is not a number."""
    expected = checks.train("compact", "float32")
    doubled = checks.train("compact", "float32", learning_rate=2e-4)
    error = checks.relative_error(doubled, expected)
    by_hand = np.sqrt(((doubled - expected) ** 2).sum() / (expected**2).sum())
    assert error == pytest.approx(by_hand, rel=1e-5)
    assert checks.judge_errors({"mixed_bfloat16": error}).outcome == findings.FAILED
    assert checks.judge_errors({"XLA": math.nan}).outcome == findings.FAILED
    assert checks.judge_errors({"XLA": 1e-5}).outcome == findings.PASSED


@pytest.mark.slow
def test_a_pretrained_backbone_lets_posters_through():
    """Else all its answers would be the head's bias, in any arithmetic."""
    logits = checks.train("pretrained_head", "float32")
    assert logits[0].std(axis=0).min() > 1e-3


@pytest.mark.slow
def test_the_step_is_timed_resident_and_fed(data_dir):
    split = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    config = checks.small_config("reference")
    step = speeds.check_step(split, config, "float32", 0)
    fed = speeds.check_input(split, config, "float32", 0)
    images = r" ([1-9]\d*) img/s"
    assert re.fullmatch(f"float32{images}, XLA{images}; reference_cnn, batches of 16", step.detail)
    share = r" (\d+) \(([\d.]+) of it\)"
    told = rf"resident{images}; fed{share}, augmented on cpu{share}, augmented on device{share}"
    resident, *others = re.match(told, fed.detail).groups()
    for speed, share in zip(others[::2], others[1::2], strict=True):
        assert float(share) == pytest.approx(int(speed) / int(resident), abs=0.03)


@pytest.mark.parametrize(("room", "largest"), [(0, 0), (64, 64), (100, 64), (10_000, 1024)])
def test_the_largest_batch_is_the_last_that_fits(room, largest):
    def try_batch(size):
        if size > room:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    assert speeds.find_largest_batch(try_batch, 64) == largest


@pytest.mark.parametrize(
    ("bfloat16", "float32", "xla", "flags"),
    [
        (100, 103, 104, ()),
        (100, 120, 110, ("--precision=float32",)),
        (100, 90, 150, ("--jit_compile",)),
    ],
)
def test_a_flag_is_recommended_where_it_is_faster(bfloat16, float32, xla, flags):
    measured = {"mixed_bfloat16": bfloat16, "float32": float32, "XLA": xla}
    assert speeds.recommend(measured, "mixed_bfloat16", num_gpus=1) == flags
    on_two = () if "--jit_compile" in flags else flags
    assert speeds.recommend(measured, "mixed_bfloat16", num_gpus=2) == on_two
