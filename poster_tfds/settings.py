"""Settings that cannot be misread: a configuration's values, checked one by one."""

import dataclasses
import difflib
import json
import math
import re
import typing

import tensorflow_datasets as tfds

from poster_tfds import faults

_EXAMPLE = """--config='{"name": "mine"}'"""
# In words and as an example.
_KINDS = {
    bool: ("true or false, without quotes", False),
    int: ("a whole number, without quotes", 1),
    float: ("a number, without quotes", 0.5),
    str: ("a string", "..."),
    list: ("a list of strings", ["Noir", "Heist"]),
}
_NAME = re.compile(r"\w[\w.+-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(eq=False)
class PosterConfig(tfds.core.BuilderConfig):
    """How annotations and posters become a dataset; every attribute can be given as JSON.

    `tfds build poster_tfds --config='{"name": "mine", "split_seed": 1}'` builds the posters
    of `--manual_dir` as `poster_tfds/mine`.

    Attributes:
        name: the dataset is then `poster_tfds/<name>`.
        split: "hashed" (train, validation and test by a hash of the Id), "stratified" (the same,
            with each genre shared out as nearly as can be; for small sets) or "reference"
            (train and test as in the tutorial).
        group_column: the column that names groups, such as films with several posters: rows of one
            group are in one split, hashed or stratified. An empty cell is a group of its own.
        split_seed: changes which posters a hashed or stratified split takes.
        validation_fraction: share of the posters in a hashed or stratified `validation`.
        test_fraction: share of the posters in a hashed or stratified `test`.
        drop_duplicates: leave out rows whose Id or whose poster's bytes came before.
        on_error: "fail" (name every fault and build nothing) or "skip" (build the rest
            and write `rejected.csv`).
        on_damage: "fail" (a JPEG of which libjpeg says that data are missing or wrong inside has a
            fault) or "keep" (it is taken, and counted).
        max_side: larger posters are reduced until their longer side has so many pixels; 0: none is.
        num_synthetic: how many posters to draw; 0 reads them from `--manual_dir`.
        csv: the file of annotations, in `--manual_dir` or anywhere; found if not given.
        images: the images' folder, in `--manual_dir` or anywhere; found if not given.
        id_column: the column that names the posters.
        genre_column: the column that lists genres. If it is given, and `genre_columns` is not, the
            list is all that counts.
        genre_columns: the 0/1 columns. If they are given, and `genre_column` is not, they are all
            that counts.
        genre_separator: what separates genres in a cell.
        separator: what separates the columns of a text.
        encoding: of a text.
    """

    name: str = ""
    split: str = "hashed"
    group_column: str = ""
    split_seed: int = 0
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    drop_duplicates: bool = True
    on_error: str = "fail"
    on_damage: str = "fail"
    max_side: int = 0
    num_synthetic: int = 0
    csv: str = ""
    images: str = ""
    id_column: str = ""
    genre_column: str = ""
    genre_columns: list[str] = dataclasses.field(default_factory=list)
    genre_separator: str = ""
    separator: str = ""
    encoding: str = ""

    def __new__(cls, *args, **given):
        """Checks that the settings exist, which a dataclass does in words for programmers only."""
        del args
        check_keys(cls, given)
        return super().__new__(cls)

    def __post_init__(self):
        """Checks the values.

        Raises:
            faults.UserError: a value cannot be used; the message names it.
        """
        check_values(self)
        for name, choices in (
            ("split", ("hashed", "stratified", "reference")),
            ("on_error", ("fail", "skip")),
            ("on_damage", ("fail", "keep")),
        ):
            if getattr(self, name) not in choices:
                raise faults.UserError(
                    f"--config: {name} is {getattr(self, name)!r}, not of {choices}."
                )
        if self.group_column and self.split == "reference":
            raise faults.UserError(
                '--config: "group_column" needs "split": "hashed" or "stratified"; the reference '
                "split takes rows one by one."
            )
        if self.max_side < 0:
            raise faults.UserError(
                f"--config: max_side is {self.max_side}; give pixels, or 0 for none."
            )
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) >= 0 and sum(fractions) < 1):
            raise faults.UserError(
                "--config: validation_fraction and test_fraction must leave a part for train; "
                f"they are {fractions}."
            )
        if len(self.separator) > 1:
            raise faults.UserError(f"--config: separator is {self.separator!r}, not one character.")


def parse(text: str) -> dict:
    """Returns the settings that `--config` gives as JSON.

    Raises:
        faults.UserError: it is not a JSON object; the message has the right form.
    """
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("no object")
    except ValueError as error:
        quotes = " JSON has double quotes, with the shell's single ones around all." * ("'" in text)
        raise faults.UserError(
            f"--config: {text} is not JSON ({error}).{quotes} Write it as {_EXAMPLE}."
        ) from None
    return given


def check_keys(config_class: type, given: dict) -> None:
    """Checks that every setting that is given exists.

    Raises:
        faults.UserError: one does not; the message has the closest, and all there are.
    """
    own = ["name", *_own_names(config_class)]
    for name in given:
        if name not in (field.name for field in dataclasses.fields(config_class)):
            close = difflib.get_close_matches(name, own, 1)
            meant = f' Did you mean "{close[0]}"?' if close else ""
            raise faults.UserError(
                f'--config: there is no setting "{name}".{meant} The settings are {", ".join(own)}.'
            )


def check_values(config: tfds.core.BuilderConfig) -> None:
    """Checks that each setting is of its kind, and that the name can be one.

    Raises:
        faults.UserError: one is not; the message has the right form.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    for name, value in values(config).items():
        kind = typing.get_origin(kinds[name]) or kinds[name]
        if not _is_a(value, kind):
            words, example = _KINDS[kind]
            raise faults.UserError(
                f'--config: "{name}" is {json.dumps(value, default=str)}; it must be {words}, as '
                f'"{name}": {json.dumps(example)}.'
            )
    _check_name(config.name)


def values(config: tfds.core.BuilderConfig) -> dict:
    """Returns the settings with their values, without the name and what TFDS adds."""
    return {name: getattr(config, name) for name in _own_names(type(config))}


def _own_names(config_class: type) -> list[str]:
    inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    return [f.name for f in dataclasses.fields(config_class) if f.name not in inherited]


def _is_a(value, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _check_name(name) -> None:
    if not name:
        raise faults.UserError(
            f'--config: "name" is missing. Give the dataset one of your own, as {_EXAMPLE}.'
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _VERSION.fullmatch(name):
        raise faults.UserError(
            f'--config: "name" is {json.dumps(name, default=str)}; it must be one of letters, '
            f'digits, "_", "-", "+" and ".", as {_EXAMPLE}.'
        )
