"""What every command does before it begins: how TensorFlow is imported."""

import os
import pathlib
import re

import pytest
import tensorflow as tf
from absl import flags

from tests import conftest
from trainer import command_line

COMMANDS = [
    path
    for package in ("trainer", "export")
    for path in sorted((conftest.PROJECT / package).rglob("*.py"))
    if "\n    command_line.run(" in path.read_text()
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_every_command_imports_tensorflow_in_the_one_place(path):
    text = path.read_text()
    place = re.search(r"^    command_line\.import_(stock_)?tensorflow\(\)", text, re.MULTILINE)
    assert place
    assert not re.search(r"^(import|from) (tensorflow|keras)", text, re.MULTILINE)
    assert not re.search(r"\n    (import|from) (tensorflow|keras)", text[: place.start()])


def test_gpus_are_shared_and_have_threads_of_their_own_unless_the_user_says_otherwise(monkeypatch):
    """And this TensorFlow knows the variables."""
    for name in command_line._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_GPU_THREAD_MODE", "global")
    flags.FLAGS.mark_as_parsed()
    command_line.import_tensorflow()
    found = [os.environ[name] for name in command_line._ENVIRONMENT]
    assert found == ["1", "true", "global"]
    library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
    content = library.read_bytes()
    for name in command_line._ENVIRONMENT:
        assert name.encode() in content
