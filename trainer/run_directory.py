"""What a run leaves on disk, and how it is written so that nobody reads half of it.

config.json  metrics.jsonl  checkpoints/  tensorboard/  learning_curves.png  augmentation.png
"""

import atexit
import json
import math
import os
import pathlib
import shutil
from typing import Any

from trainer import config as config_lib

# What may change when a run is continued: none of these changes what is learned.
_MAY_CHANGE = {
    "data_dir",
    "epochs",
    "max_steps",
    "cache",
    "strategy",
    "tpu",
    "logical_cpus",
    "jit_compile",
    "steps_per_call",
    "deterministic",
}


class RunDirectory:
    """The files of a run, by name."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.learning_curves = self.path / "learning_curves.png"
        self.augmentation = self.path / "augmentation.png"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"

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
                f"--run_dir={self.path}: no run stands there (no {self._config.name}). "
                "Train one with `python -m trainer`."
            ) from None
        return config_lib.Config.from_json(facts.pop("config")), facts

    def check_continues(self, config: config_lib.Config, resume: bool) -> None:
        """Checks that a run with these settings may go on here, if one has begun.

        Raises:
            config.UsageError: it has, and it is not to be resumed or was made with other
                settings.
        """
        if not self._config.exists():
            return
        if not resume:
            raise config_lib.UsageError(
                f"--run_dir={self.path} holds a run. Leave out --noresume to continue it, or "
                "choose another directory."
            )
        before, now = self.read_config()[0].to_json(), config.to_json()
        changed = [
            f"  --{name}: {before[name]!r} then, {now[name]!r} now"
            for name in now
            if name not in _MAY_CHANGE and before[name] != now[name]
        ]
        if changed:
            raise config_lib.UsageError(
                f"--run_dir={self.path} holds a run with other settings:\n"
                + "\n".join(changed)
                + "\nRepeat its settings to continue it, or choose another directory."
            )

    def new_cache_file(self) -> str:
        """Returns the name of a file for decoded posters, gone when the process ends.

        tf.data refuses to go on with a cache that was not completed, so what a killed
        process left is removed.
        """
        directory = self.path / "cache"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return os.fspath(directory / "posters")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the records of `metrics.jsonl`, oldest first."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text().splitlines(keepends=True)
        # A line without its end was cut off by a crash.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def keep_metrics_until(self, step: int) -> None:
        """Drops the records of steps that a resumed run is about to repeat."""
        if self._metrics.exists():
            records = [record for record in self.read_metrics() if record["step"] <= step]
            write_atomically(self._metrics, "".join(map(_json_line, records)))

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Adds records to `metrics.jsonl`, one object a line."""
        with self._metrics.open("a") as file:
            file.write("".join(map(_json_line, records)))


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.incomplete")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def _json_line(record: dict[str, Any]) -> str:
    # JSON has no NaN; a metric that is not defined is null.
    return json.dumps(_without_nan(record), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
