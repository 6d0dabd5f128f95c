"""A head that is trained first and the fine-tuning after it, in one run; a run that ends early."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest

from tests import conftest
from tests.test_resume import assert_same_run, finish, metrics, steps, wait_for
from trainer import config
from trainer.models import registry
from trainer.reports import comparison
from trainer.run import checkpoints, directory

FLAGS = (
    *("--preset=pretrained", "--pretrained_weights=none", "--image_size=32", "--second_size=24"),
    "--model=efficientnet_lite0",
    "--head_units=16",
    *("--head_epochs=3", "--epochs=2", "--freeze=stem,block*", "--augment=flip,crop"),
    *("--checkpoint_every_steps=5", "--deterministic", "--noreport"),
)


def start(data_dir, run_dir, *flags):
    return conftest.start(
        *(sys.executable, "-m", "trainer", "--dataset=poster_tfds/synthetic"),
        *(f"--data_dir={data_dir}", f"--run_dir={run_dir}", *flags),
    )


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    printed = finish(start(data_dir, run_dir, *FLAGS))
    assert printed.index("Phase 1 of 2") < printed.index("Phase 2 of 2")
    return run_dir


def test_a_run_killed_in_either_phase_ends_as_if_nothing_had_happened(data_dir, tmp_path, whole):
    killed = start(data_dir, tmp_path, *FLAGS)
    assert wait_for(lambda: steps(tmp_path / "head")[-1:] >= [5], killed)
    killed.kill()
    finish(killed, -signal.SIGKILL)
    killed = start(data_dir, tmp_path, *FLAGS)
    assert wait_for(lambda: steps(tmp_path)[-1:] >= [5], killed)
    killed.kill()
    finish(killed, -signal.SIGKILL)
    assert "Phase 1 of 2" not in finish(start(data_dir, tmp_path, *FLAGS))
    assert_same_run(tmp_path / "head", whole / "head")
    assert_same_run(tmp_path, whole)


def test_a_run_killed_between_the_phases_computes_no_features_again(data_dir, tmp_path, whole):
    shutil.copytree(whole / "head", tmp_path / "head")
    printed = finish(start(data_dir, tmp_path, *FLAGS))
    before, after = printed.split("Phase 2 of 2")
    assert "all 48 steps are done" in before and "constant " not in before
    assert "constant " in after
    assert_same_run(tmp_path, whole)


def test_the_second_phase_begins_with_the_head_of_the_first(whole):
    """Each of its 32 steps of Adam moves a weight by about the rate of 1e-4, at most."""
    trained, before = (checkpoints.restore_model(path)[0] for path in (whole, whole / "head"))
    for now, then in zip(
        trained.get_layer("head").weights, before.get_layer("head").weights, strict=True
    ):
        np.testing.assert_allclose(now, then, atol=32 * 2e-4)


def test_pictures_and_comparisons_have_both_phases(whole):
    run = directory.RunDirectory(whole)
    history = run.read_history()
    of_test = history[history["split"] == "test"]
    assert of_test["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert of_test["phase"].tolist() == [1, 1, 1, 2, 2]
    seconds = [
        json.loads(path.read_text().splitlines()[-1])["seconds"]
        for path in (whole / "head" / "metrics.jsonl", whole / "metrics.jsonl")
    ]
    compared = comparison.read_run(whole, "test")
    assert compared.minutes == pytest.approx(sum(seconds) / 60)
    assert len(compared.configs) == 1
    assert set(run.head.read_history()["phase"]) == {1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--freeze=backbone",), "--head_epochs=3 .* leave out --freeze=backbone"),
        (("--init_from=elsewhere",), "leave out --init_from=elsewhere"),
    ],
)
def test_a_head_is_not_trained_first_where_there_is_nothing_after_it_or_one_before(flags, said):
    values = dict(flag.lstrip("-").split("=") for flag in flags)
    with pytest.raises(config.UsageError, match=said):
        config.Config(head_epochs=3, **values)


def test_a_model_without_a_backbone_has_no_head_to_train_first():
    phase = config.Config(head_epochs=3, model="compact_cnn", image_size=32).head_phase()
    with pytest.raises(config.UsageError, match="compact_cnn has no backbone"):
        registry.create_model(phase, 4, "float32")


SPLITS = ("--train_split=train[:80%]", "--validation_split=train[80%:]")


def test_a_run_ends_when_scores_do_not_rise(data_dir, tmp_path):
    """Nothing is learned at this rate; normalization's moving statistics are all that changes."""
    flags = ("--preset=reference", "--image_size=48", "--learning_rate=0", "--epochs=60")
    flags = (*flags, *SPLITS, "--patience=3", "--noreport")
    assert "3 evaluations have brought no higher macro AP" in finish(
        start(data_dir, tmp_path, *flags)
    )
    scores = [r["macro_ap"] for r in metrics(tmp_path) if r["split"] == "train[80%:]"]
    ends = [i for i in range(3, len(scores)) if max(scores[i - 2 : i + 1]) <= max(scores[: i - 2])]
    assert ends == [len(scores) - 1]
    assert len(scores) < 60
    again = finish(start(data_dir, tmp_path, *flags))
    assert "3 evaluations have brought no higher macro AP" in again
    assert len(steps(tmp_path)) >= 1 and len(metrics(tmp_path)) == 3 * len(scores)


def test_patience_without_a_validation_split_is_refused(data_dir, tmp_path):
    printed = finish(start(data_dir, tmp_path, "--patience=3"), 1)
    assert "--patience=3 looks at a validation split" in printed
    assert "Traceback" not in printed
