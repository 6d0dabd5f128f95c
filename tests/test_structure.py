"""The shape of the house: what may import what, how large a file may be, what README points to."""

import ast
import re
import sys

import pytest

from tests.conftest import PROJECT

MAY_IMPORT = {
    "poster_tfds": {"poster_tfds"},
    "trainer": {"poster_tfds", "trainer"},
    "export": {"poster_tfds", "trainer", "export"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((PROJECT / package).rglob("*.py"))]


def imported(path):
    """Returns the modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_data_flows_one_way(package):
    for path in (PROJECT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imported(path)} & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package], path


@pytest.mark.parametrize(
    ("room", "closed"),
    [
        ("trainer/data", ("trainer.models", "trainer.reports", "trainer.train")),
        ("trainer/models", ("trainer.data", "trainer.reports", "trainer.run", "trainer.train")),
        ("trainer/run", ("trainer.data", "trainer.reports", "trainer.train")),
        ("trainer/benchmark", ("trainer.doctor", "trainer.train")),
        ("trainer/doctor", ("trainer.reports", "trainer.train")),
        ("trainer/decisions", ("trainer.data", "trainer.models", "trainer.reports")),
        ("trainer/search", ("trainer.models", "trainer.train")),
    ],
)
def test_a_room_does_not_reach_into_another_that_it_is_used_by(room, closed):
    for path in (PROJECT / room).glob("*.py"):
        reached = {
            name for name in imported(path) for c in closed if f"{name}.".startswith(f"{c}.")
        }
        assert reached == set(), path


def test_no_file_is_crowded():
    files = [*FILES, *(PROJECT / "tests").glob("*.py")]
    sizes = {path.relative_to(PROJECT): len(path.read_text().splitlines()) for path in files}
    assert {path: size for path, size in sizes.items() if size > 400} == {}


def test_no_module_takes_a_name_of_the_standard_library():
    """`tfds build` may run inside the folder, where such a name would win."""
    taken = {path.stem for path in (PROJECT / "poster_tfds").iterdir()} & sys.stdlib_module_names
    assert taken == set()


def test_readme_is_a_front_page_whose_map_is_right():
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"`((?:poster_tfds|trainer|export)/[\w/]+\.py)`", text)
    assert len(links) >= 4 and len(files) >= 7
    for name in (*links, *files):
        assert (PROJECT / name).exists(), name
