"""How a stage is timed: in turns with the others, so that a busy moment hits all alike."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

_WARM_UP = 3  # Steps before the clock counts: they compile, or take what was prefetched.


@dataclasses.dataclass(frozen=True)
class Turn:
    """What was done while the clock counted."""

    images: int
    seconds: float
    cpu_seconds: float

    def __add__(self, other: "Turn") -> "Turn":
        """Both together."""
        return Turn(
            self.images + other.images,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
        )

    def figures(self) -> dict[str, float]:
        """Returns the speed, what an image cost and how much of the machine was at work."""
        return {
            "images_per_second": self.images / self.seconds,
            "cpu_ms_per_image": 1000 * self.cpu_seconds / self.images,
            "cores_busy": self.cpu_seconds / self.seconds,
        }


def take_turn(step: Callable[[], int], seconds: float) -> Turn:
    """Calls `step`, which returns how many images it did, until the time is over."""
    for _ in range(_WARM_UP):
        step()
    images = 0
    start, cpu_start = time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - start < seconds:
        images += step()
    return Turn(images, time.perf_counter() - start, time.process_time() - cpu_start)


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    # Not `getrusage`: there a new process starts with its parent's.
    words = pathlib.Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024
