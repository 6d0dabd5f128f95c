"""Checks a built dataset: reads and decodes every record and compares it with what was built.

    python -m poster_tfds.verify --data_dir=data --config=imdb

The exit status is 1 if something is wrong.
"""

import sys

from absl import app, flags, logging

from poster_tfds import faults
from poster_tfds.built import opening, verification

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where the dataset is built.")
_CONFIG = flags.DEFINE_string("config", "imdb", "Configuration to check.")

_SHOWN = 20  # Problems.


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
    logging.set_verbosity(logging.ERROR)
    try:
        builder = opening.open_built(_CONFIG.value, _DATA_DIR.value)
    except faults.UserError as error:
        sys.exit(str(error))
    if problems := verification.verify(builder):
        sys.exit(_in_words(builder.info.full_name, problems))
    print(f"{builder.info.full_name}: all is well")
    for name, split in builder.info.splits.items():
        size = f"{split.num_bytes / 1e6:.1f} MB in {split.num_shards} shards"
        print(f"  {name}: {split.num_examples} posters, {size}")


def _in_words(name: str, problems: list[str]) -> str:
    lines = [f"{name}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    return "\n".join([*lines, "Build it again into another --data_dir, or add --overwrite."])


if __name__ == "__main__":
    app.run(main)
