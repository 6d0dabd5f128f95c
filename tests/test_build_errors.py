"""A user's mistake ends `tfds build` in one message; any other error keeps its traceback."""

import json
import pickle
import sys

import pytest

from poster_tfds import directory_lock, faults, poster_tfds_dataset_builder
from tests import conftest


def build_command_fails(tmp_path, *arguments):
    """Returns what `tfds build` says at its end, and checks how it ends."""
    result = conftest.tfds_build(f"--data_dir={tmp_path / 'data'}", *arguments, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "data").rglob("*tfrecord*"))
    return result.stderr


def test_a_folder_that_is_not_there_ends_the_build_in_one_message(tmp_path):
    folder = tmp_path / "nowhere"
    message = build_command_fails(tmp_path, "--config=imdb", f"--manual_dir={folder}")
    assert f"Manual directory {folder} does not exist or is empty" in message
    assert message.rstrip().endswith("python -m poster_tfds.look FOLDER")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ('{"name": "mine", ', '--config: {"name": "mine",  is not JSON ('),
        (
            '{"name": "mine", "splt": "hashed"}',
            '--config: there is no setting "splt". Did you mean "split"?',
        ),
        ("imbd", "there is no configuration 'imbd', only imdb, imdb_clean, synthetic."),
    ],
)
def test_a_configuration_that_cannot_be_ends_the_build_in_one_message(value, complaint, tmp_path):
    message = build_command_fails(tmp_path, f"--config={value}")
    assert complaint in message.splitlines()[-1]


def test_several_processes_hand_the_message_on(tmp_path):
    """One that cannot be pickled would have `tfds build` wait for ever."""
    (tmp_path / "posters" / "Images").mkdir(parents=True)
    (tmp_path / "posters" / "train.csv").write_text("Id,Noir\na,2\n")
    message = build_command_fails(
        tmp_path, "--config=imdb", f"--manual_dir={tmp_path / 'posters'}", "--num_processes=2"
    )
    assert "`Noir` is '2'; it must be 0 or 1" in message or "genre_columns" in message
    fault = faults.Fault(3, "a", "broken")
    for error in (
        faults.PosterDataError("train.csv", [fault]),
        directory_lock.HeldError("at work"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


BUG = """
import sys
from absl import app
import tensorflow_datasets.scripts.cli.main  # As `tfds build` does.
import poster_tfds

def main(argv):
    {statement}

app.run(main)
"""


@pytest.mark.parametrize("statement", ["[][0]", "import json; json.loads('{')"])
def test_an_error_that_is_not_the_users_shows_where_it_is(statement):
    result = conftest.run(sys.executable, "-c", BUG.format(statement=statement), check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(("IndexError", "json.decoder.JSONDecodeError"))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({}, '"name" is missing. Give the dataset one of your own'),
        ({"name": "a/b"}, '"name" is "a/b"; it must be one of letters, digits'),
        ({"name": ".."}, '"name" is ".."; it must be one of letters, digits'),
        ({"name": 7}, '"name" is 7; it must be one of letters, digits'),
        ({"name": "mine", "test_fraction": "0.2"}, '"test_fraction" is "0.2"; it must be a number'),
        ({"name": "mine", "test_fraction": True}, '"test_fraction" is true; it must be a number'),
        ({"name": "mine", "test_fraction": float("nan")}, '"test_fraction" is NaN; it must be a'),
        ({"name": "mine", "test_fraction": 1}, "must leave a part for train"),
        ({"name": "mine", "split_seed": 1.5}, '"split_seed" is 1.5; it must be a whole number'),
        ({"name": "mine", "drop_duplicates": "false"}, "it must be true or false, without quotes"),
        ({"name": "mine", "seed": 1}, 'there is no setting "seed"'),
    ],
)
def test_settings_of_the_wrong_name_or_kind_are_refused_by_name(setting, complaint):
    with pytest.raises(faults.UserError, match=f"--config: .*{complaint}"):
        poster_tfds_dataset_builder.PosterConfig(**json.loads(json.dumps(setting)))


def test_a_configuration_of_a_name_that_is_taken_is_refused(tmp_path):
    with pytest.raises(faults.UserError, match='"imdb" is a built-in configuration with settings'):
        conftest.build(None, tmp_path, {"name": "imdb"})
