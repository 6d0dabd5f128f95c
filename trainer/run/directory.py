"""What a run leaves on disk, and how it is written so that nobody reads half of it.

config.json  metrics.jsonl  checkpoints/  tensorboard/  learning_curves.png  augmentation.png
report.html  answers.npz  thresholds.json
head/, a run's directory of its own: of the head that was trained first
"""

import contextlib
import json
import math
import os
import pathlib
from typing import Any

import pandas as pd

from poster_tfds import directory_lock, object_stores
from trainer import config as config_lib

# What may change when a run is continued: none of these changes what is learned.
_MAY_CHANGE = {
    "data_dir",
    "epochs",
    "max_steps",
    "patience",
    "evaluate_every",
    "cache",
    "cache_dir",
    "strategy",
    "worker_timeout",
    "logical_cpus",
    "jit_compile",
    "steps_per_call",
    "deterministic",
    "data_service",
    "augment_on",
    "checkpoint_every_steps",
    "checkpoint_every_seconds",
    "keep_checkpoints",
}
THRESHOLDS = "thresholds.json"  # Of a run, and of what is exported of it.
_KEYS = ["epoch", "step", "split"]  # What tells records of metrics apart.
_SCORES = ("loss", "label_accuracy", "macro_ap", "micro_ap", "lrap")
_COLUMNS = [
    *_KEYS,
    *(f"{prefix}{name}" for prefix in ("", "constant.") for name in _SCORES),
    *("images_per_second", "seconds", "learning_rate", "share_waited", "skipped_steps"),
]
_OTHER_MODEL = "Its checkpoints do not fit another model."
_OTHER_STEPS = (
    "Its checkpoints count batches, so that epochs of others would be miscounted; begin another "
    "run with its weights, by --init_from."
)
# What --override cannot change, and why.
_FIXED = {
    "model": _OTHER_MODEL,
    "image_size": _OTHER_MODEL,
    "batch_size": _OTHER_STEPS,
    "accumulate_steps": _OTHER_STEPS,
}


def local_path(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """Returns a path of a file system.

    Raises:
        config.UsageError: it names an object store, which would become a folder of that name.
    """
    if object_stores.is_on_one(path):
        raise config_lib.UsageError(
            f"{flag}={path}: give a folder of a file system, a mounted one if need be; only "
            "--data_dir may be on an object store."
        )
    return pathlib.Path(path)


class RunDirectory:
    """The files of a run, by name."""

    def __init__(self, path: str | os.PathLike):
        """Names the files.

        Raises:
            config.UsageError: `path` is not of a file system.
        """
        self.path = local_path(path, "--run_dir")
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.learning_curves = self.path / "learning_curves.png"
        self.augmentation = self.path / "augmentation.png"
        self.report = self.path / "report.html"
        self.answers = self.path / "answers.npz"
        self.thresholds = self.path / THRESHOLDS
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"

    @property
    def head(self) -> "RunDirectory":
        """The run of the head that is trained first, if one is."""
        return RunDirectory(self.path / "head")

    def seconds_of_head(self) -> float:
        """Returns how long the head was trained first; 0 if none was."""
        return self.head.read_metrics()["seconds"].max() if self.head.has_begun() else 0.0

    def has_begun(self) -> bool:
        """Returns whether a run has begun here; its head may have before."""
        return self._config.exists()

    def write_config(self, config: config_lib.Config, **facts: Any) -> None:
        """Writes the settings and what was made of them (genres, precision, ...)."""
        content = {"config": config.to_json(), **facts}
        write_atomically(self._config, json.dumps(content, indent=2) + "\n")

    def read_config(self) -> tuple[config_lib.Config, dict[str, Any]]:
        """Returns the settings of the run and the facts beside them.

        Raises:
            config.UsageError: this is not the directory of a run.
        """
        try:
            facts = json.loads(self._config.read_text())
        except FileNotFoundError:
            raise config_lib.UsageError(
                f"--run_dir={self.path}: there is no run (no {self._config.name}). "
                "Train one with `python -m trainer`."
            ) from None
        return config_lib.Config.from_json(facts.pop("config")), facts

    def check_continues(self, config: config_lib.Config, resume: bool, override: bool) -> None:
        """Checks that a run with these settings may go on here, if one has begun.

        Raises:
            config.UsageError: it has, and it is not to be resumed or was made with other
                settings.
        """
        if not self.has_begun():
            return
        if not resume:
            raise config_lib.UsageError(
                f"--run_dir={self.path} holds a run. Leave out --noresume to continue it, or "
                "choose another directory."
            )
        before, now = self.read_config()[0].to_json(), config.to_json()
        fixed = now.keys() - _MAY_CHANGE
        if config.learning_rate_schedule != "constant":
            fixed |= {"epochs"}  # The schedule ends with the last.
        changed = {name for name in fixed if before[name] != now[name]}
        reasons = {_FIXED[name] for name in changed & _FIXED.keys()}
        if changed and (reasons or not override):
            raise config_lib.UsageError(
                f"--run_dir={self.path} holds a run with other settings:\n"
                + "\n".join(
                    f"  --{name}: {before[name]!r} then, {now[name]!r} now"
                    for name in now
                    if name in changed
                )
                + "\nRepeat its settings to continue it, or choose another directory. "
                + (" ".join(sorted(reasons)) or "--override goes on with the new ones.")
            )

    def check_same_data(self, genres: list[str], num_train: int) -> None:
        """Checks that a run that has begun here was trained on the same dataset.

        Raises:
            config.UsageError: it was built anew with other genres or other posters.
        """
        if not self.has_begun():
            return
        _, facts = self.read_config()
        for what, before, now in (
            ("genres", facts["genres"], genres),
            ("number of posters to train on", facts["num_train"], num_train),
        ):
            if before != now:
                raise config_lib.UsageError(
                    f"--run_dir={self.path}: the dataset has changed since the run began. Its "
                    f"{what} then: {before}; now: {now}. Choose another directory."
                )

    def check_same_order(self, cache: str) -> None:
        """Checks that a run that has begun here goes on in the order of posters that it has.

        Args:
            cache: `none`, a stream, has an order of its own; all others have one.

        Raises:
            config.UsageError: it would not.
        """
        before = self.read_config()[1]["cache"] if self.has_begun() else cache
        if before != cache and "none" in (before, cache):
            raise config_lib.UsageError(
                f"--run_dir={self.path}: with --cache={cache} posters would come in another order "
                f"than with --cache={before}, with which the run began. Give that one."
            )

    @contextlib.contextmanager
    def held(self):
        """Keeps other trainers out of the directory, which is removed if nothing came into it.

        Raises:
            config.UsageError: one is at work in it.
        """
        is_new = not self.path.exists()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(directory_lock.hold(self.path))
            except directory_lock.HeldError as error:
                raise config_lib.UsageError(
                    f"--run_dir={self.path}: another trainer is at work there. Wait until it has "
                    "ended, or choose another directory."
                ) from error
            if is_new:
                stack.callback(_remove_if_empty, self.path)
            yield

    def read_metrics(self) -> pd.DataFrame:
        """Returns the records of `metrics.jsonl`, oldest first, a row each.

        The constant predictor's scores are columns as `constant.macro_ap`; what is not
        defined is NaN.
        """
        return as_frame([json.loads(line) for line in self._metrics_lines()])

    def read_history(self) -> pd.DataFrame:
        """Returns the records as `read_metrics` does, after those of the head, if there are any.

        The epochs are counted on. The column `phase` is 1 for the head's, 2 for what follows;
        without a head all are 1.
        """
        phases = [path.read_metrics() for path in (self.head, self) if path.has_begun()]
        last = 0
        for number, records in enumerate(phases, start=1):
            records["epoch"] += last
            records["phase"] = number
            last = records["epoch"].max()
        return pd.concat(phases, ignore_index=True)

    def best_step(self) -> int | None:
        """Returns the step with the highest macro AP on the validation split, if there is one."""
        scores = self._validation_scores()
        return None if scores.empty else int(scores.idxmax())

    def evaluations_since_best(self) -> int:
        """Returns how many evaluations on the validation split came after the best one."""
        scores = self._validation_scores()
        return 0 if scores.empty else len(scores) - 1 - int(scores.argmax())

    def _validation_scores(self) -> pd.Series:
        """Returns the macro AP on the validation split, by step; empty if there is none."""
        records = self.read_metrics()
        validation = "" if records.empty else self.read_config()[1]["validation_split"]
        scores = records.loc[records["split"] == validation].set_index("step")
        return scores["macro_ap"].dropna()

    def keep_metrics_until(self, step: int) -> None:
        """Drops the records of steps that a resumed run is about to repeat."""
        if self._metrics.exists():
            kept = [line for line in self._metrics_lines() if json.loads(line)["step"] <= step]
            write_atomically(self._metrics, "".join(kept))

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Adds records to `metrics.jsonl`, one object a line."""
        lines = [*self._metrics_lines(), *map(_json_line, records)]
        write_atomically(self._metrics, "".join(lines))

    def _metrics_lines(self) -> list[str]:
        if not self._metrics.exists():
            return []
        return self._metrics.read_text().splitlines(keepends=True)


def as_frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Returns records of metrics as rows, the constant predictor's scores as `constant.NAME`."""
    frame = pd.json_normalize(records)
    missing = [name for name in _COLUMNS if name not in frame]
    frame = frame.reindex(columns=[*frame.columns, *missing])
    numbers = frame.columns.difference(_KEYS)
    return frame.astype(dict.fromkeys(numbers, float))  # None becomes NaN.


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file under a temporary name and renames it.

    Raises:
        config.UsageError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise config_lib.UsageError(
            f"{path} could not be written: {error.strerror}. Make room, and give the same command "
            "again to go on."
        ) from error


def _remove_if_empty(directory: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _json_line(record: dict[str, Any]) -> str:
    # JSON has no NaN; a metric that is not defined is null.
    return json.dumps(_without_nan(record), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
