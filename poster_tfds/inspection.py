"""What is in a folder of posters before it is built, and what is wrong with it."""

import json
import re
import shlex

from etils import epath

from poster_tfds import description, faults, image_files, source as source_lib
from poster_tfds.settings import PosterConfig

_HOPELESS, _POOR = 10, 100  # Posters of a genre.
_JPEG_MAGIC = b"\xff\xd8\xff"
_SHOWN = 20  # Faults.


def inspect_folder(directory: epath.PathLike, given: dict) -> dict:
    """Returns what is in a folder of posters, in values that JSON can hold.

    Raises:
        faults.UserError: the annotations cannot be understood, or a setting cannot be used.
    """
    directory = epath.Path(directory).expanduser()
    name = re.sub(r"[^\w.+-]", "_", directory.resolve().name).lstrip("._+-")
    given = {"name": f"{name or 'posters'}", **given}
    source = source_lib.PosterSource(directory, PosterConfig(**given))
    facts = description.describe(source)
    facts |= {"found": 0, "missing": 0, "converted": 0, "faults": []}
    for row in source.rows(*source_lib.SPLITS):
        if isinstance(row, faults.Fault):
            facts["faults"].append(str(row))
            facts["missing"] += bool(row.poster_id) and not source.images.find(row.poster_id)
        else:
            facts["found"] += 1
            facts["converted"] += not _is_jpeg(image_files.poster_path(source.images_dir, row))
    facts["splits"] = source.num_rows
    counts = facts["genres"]
    facts["cannot_be_learned"] = [g for g, count in counts.items() if count < _HOPELESS]
    facts["learned_poorly"] = [g for g, count in counts.items() if _HOPELESS <= count < _POOR]
    rarest = min((count for count in counts.values() if count), default=0)
    facts["commonest_over_rarest"] = max(counts.values()) / rarest if rarest else None
    if facts["faults"]:
        given["on_error"] = "skip"
    facts["command"] = (
        f"tfds build poster_tfds --config={shlex.quote(json.dumps(given, ensure_ascii=False))} "
        f"--manual_dir={shlex.quote(str(directory))} --data_dir=data"
    )
    return facts


def in_words(facts: dict) -> str:
    """Returns what `inspect_folder` found as lines for a terminal, the build's command last."""
    lines = description.in_words(facts)
    lines.append(
        f"  {facts['found']} posters found, {facts['missing']} images missing, "
        f"{facts['converted']} to be converted; {facts['repeated']} rows repeated"
    )
    lines.append(f"  splits: {', '.join(f'{name} {n}' for name, n in facts['splits'].items())}")
    width = max(map(len, facts["genres"]))
    for genre, count in sorted(facts["genres"].items(), key=lambda item: -item[1]):
        remark = "cannot be learned" * (count < _HOPELESS) or "poorly" * (count < _POOR)
        lines.append(f"    {genre:<{width}} {count:>8}  {remark}".rstrip())
    if facts["commonest_over_rarest"]:
        lines.append(f"  the commonest is {facts['commonest_over_rarest']:.0f} times the rarest")
    if facts["faults"]:
        lines.append(f"{len(facts['faults'])} rows cannot be used:")
        lines += [f"  {fault}" for fault in facts["faults"][:_SHOWN]]
        lines.append("Mend them, or leave them out as this does:")
    return "\n".join([*lines, "", facts["command"]])


def _is_jpeg(path: epath.Path) -> bool:
    """Returns whether a file begins as a JPEG does; only what does not is surely converted."""
    try:
        with path.open("rb") as file:
            return file.read(len(_JPEG_MAGIC)) == _JPEG_MAGIC
    except OSError:
        return True  # The build names it.
