"""A head that is trained first and the fine-tuning after it, in one run; a run that ends early."""

import shutil

import numpy as np
import pytest

from tests import conftest
from tests.runs import assert_same_run, killed_after, metrics, steps
from trainer import config
from trainer.models import registry
from trainer.run import checkpoints

SETTINGS = {
    "model": "tiny_backbone",
    "head_units": 16,
    "head_epochs": 2,
    "freeze": "stem",
    "augment": "flip,crop",
    "checkpoint_every_steps": 4,
    "steps_per_call": 1,
    "deterministic": True,
    "learning_rate": 1e-4,
}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    conftest.train(data_dir, run_dir, **SETTINGS)
    return run_dir


def test_a_run_killed_in_either_phase_ends_as_if_nothing_had_happened(
    data_dir, tmp_path, whole, capsys
):
    with killed_after(5):
        conftest.train(data_dir, tmp_path, **SETTINGS)
    assert steps(tmp_path / "head") == [4] and not steps(tmp_path)
    capsys.readouterr()
    conftest.train(data_dir, tmp_path, **SETTINGS, max_steps=5)
    printed = capsys.readouterr().out
    assert printed.index("Phase 1 of 2") < printed.index("Phase 2 of 2")
    conftest.train(data_dir, tmp_path, **SETTINGS)
    assert "Phase 1 of 2" not in capsys.readouterr().out
    assert_same_run(tmp_path / "head", whole / "head")
    assert metrics(tmp_path)[-2:] == metrics(whole)[-2:]


def test_a_run_killed_between_the_phases_computes_no_features_again(
    data_dir, tmp_path, whole, capsys
):
    shutil.copytree(whole / "head", tmp_path / "head")
    conftest.train(data_dir, tmp_path, **SETTINGS)
    before, after = capsys.readouterr().out.split("Phase 2 of 2")
    assert "all 12 steps are done" in before and "constant " not in before
    assert "constant " in after
    assert_same_run(tmp_path, whole)


def test_the_second_phase_begins_with_the_head_of_the_first(whole):
    """Each of its 12 steps of Adam moves a weight by about the rate of 1e-4, at most."""
    trained, before = (checkpoints.restore_model(path)[0] for path in (whole, whole / "head"))
    for now, then in zip(
        trained.get_layer("head").weights, before.get_layer("head").weights, strict=True
    ):
        np.testing.assert_allclose(now, then, atol=12 * 2e-4)
    frozen, free = (
        [
            np.array_equal(now, then)
            for now, then in zip(
                *(m.get_layer("backbone").get_layer(name).weights for m in (trained, before)),
                strict=True,
            )
        ]
        for name in ("stem", "block1")
    )
    assert all(frozen) and not any(free[:1])


def test_a_model_without_a_backbone_has_no_head_to_train_first():
    phase = config.Config(head_epochs=3, model="compact_cnn", image_size=32).head_phase()
    with pytest.raises(config.UsageError, match="compact_cnn has no backbone"):
        registry.create_model(phase, 4, "float32")


def test_a_run_ends_when_scores_do_not_rise(data_dir, tmp_path, capsys):
    """Nothing is learned at this rate; normalization's moving statistics are all that changes."""
    settings = {
        "learning_rate": 0.0,
        "epochs": 60,
        "batch_size": 20,
        "train_split": "train[:75%]",
        "validation_split": "train[75%:]",
        "patience": 3,
    }
    for _ in range(2):  # Again: it stays done.
        conftest.train(data_dir, tmp_path, **settings)
        assert "3 evaluations have brought no higher macro AP" in capsys.readouterr().out
    scores = [r["macro_ap"] for r in metrics(tmp_path) if r["split"] == "train[75%:]"]
    ends = [i for i in range(3, len(scores)) if max(scores[i - 2 : i + 1]) <= max(scores[: i - 2])]
    assert ends == [len(scores) - 1]
    assert len(scores) < 60
    assert len(steps(tmp_path)) >= 1 and len(metrics(tmp_path)) == 3 * len(scores)


def test_patience_without_a_validation_split_is_refused(data_dir, tmp_path):
    with pytest.raises(config.UsageError, match="--patience=3 looks at a validation split"):
        conftest.train(data_dir, tmp_path, patience=3)
