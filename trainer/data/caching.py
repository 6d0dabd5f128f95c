"""What is kept of a split after its first epoch: what `--cache` means on this machine.

And where features are kept, of which there is no choice: they are needed.
"""

from typing import NamedTuple

from poster_tfds import machine
from trainer.data import splits

_MEMORY_SHARE = 0.5  # Of the free memory, that `auto` takes.


class Cache(NamedTuple):
    """What is kept, and why."""

    name: str
    reason: str


def choose_feature_cache(num_bytes: int) -> Cache:
    """Chooses where the features of a frozen backbone are: `in memory` or `on disk`."""
    free = machine.available_memory()
    fits = num_bytes <= free * _MEMORY_SHARE
    return Cache(
        "in memory" if fits else "on disk",
        f"{num_bytes / 1e9:.2f} GB {'fit' if fits else 'do not fit'} in half of the "
        f"{free / 1e9:.1f} GB of free memory",
    )


def choose_cache(name: str, split: splits.Split, image_size: int) -> Cache:
    """Resolves `--cache`: with `auto`, to what fits in half of the memory that is free.

    A cache that is asked for by name is given up only if it does not fit at all: the
    system would kill the run.
    """
    free = machine.available_memory()
    sizes = {
        "decoded": split.num_examples * image_size**2 * 3,
        "encoded": split.num_bytes,
    }
    if name not in ("auto", *sizes):
        return Cache(name, f"as --cache={name} says")
    if name == "auto":
        room, memory = free * _MEMORY_SHARE, f"half of the {free / 1e9:.1f} GB of free memory"
        choices = list(sizes)
    else:
        room, memory = free, f"the {free / 1e9:.1f} GB of free memory"
        choices = list(sizes)[list(sizes).index(name) :]
    chosen = next((choice for choice in choices if sizes[choice] <= room), "none")
    if chosen == name:
        return Cache(name, f"as --cache={name} says")
    reasons = [
        f"{sizes[choice] / 1e9:.2f} GB of {choice} posters "
        + (f"fit in {memory}" if choice == chosen else f"do not fit in {memory}")
        for choice in choices[: choices.index(chosen) + 1 if chosen in choices else None]
    ]
    if chosen == "none":
        reasons.append(f"--cache=disk keeps {sizes['decoded'] / 1e9:.2f} GB on disk")
    warning = "" if name == "auto" else f"WARNING, not --cache={name}: "
    return Cache(chosen, warning + "; ".join(reasons))
