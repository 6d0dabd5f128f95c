"""What every command does before it begins: how TensorFlow is imported."""

import os
import pathlib
import re
import sys

import pytest
import tensorflow as tf

from tests import conftest
from trainer import command_line

IMPORT = """
import os
from absl import flags
from trainer import command_line
flags.FLAGS(["command"])
command_line.{function}()
print(*(os.environ[name] for name in command_line._ENVIRONMENT))
"""
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


@pytest.mark.parametrize("function", ["import_tensorflow", "import_stock_tensorflow"])
def test_gpus_are_shared_and_have_threads_of_their_own_unless_the_user_says_otherwise(function):
    environment = {n: v for n, v in os.environ.items() if n not in command_line._ENVIRONMENT}
    code = IMPORT.format(function=function)
    command = ("env", "-i", *(f"{name}={value}" for name, value in environment.items()))
    result = conftest.run(*command, sys.executable, "-c", code)
    assert result.stdout.split() == ["1", "true", "gpu_private"]
    own = ("TF_FORCE_GPU_ALLOW_GROWTH=false", "TF_GPU_THREAD_MODE=global")
    result = conftest.run(*command, *own, sys.executable, "-c", code)
    assert result.stdout.split() == ["1", "false", "global"]


def test_this_tensorflow_knows_the_variables():
    library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
    content = library.read_bytes()
    for name in command_line._ENVIRONMENT:
        assert name.encode() in content
