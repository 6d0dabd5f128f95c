"""How far a long piece of work has come."""

import sys
import time

import tqdm

_SECONDS_BETWEEN_LINES = 30


class Progress:
    """Images a second and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, num_steps: int, done: int = 0, unit: str = "step"):
        """Begins to count.

        Args:
            name: of what is going on.
            num_steps: how many steps it has.
            done: how many of them an interrupted run has done.
            unit: what they are called.
        """
        self._name, self._unit = name, unit
        self._num_steps = num_steps - done
        self._done = done
        self._steps = self._images = 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=done,
            desc=name,
            unit=unit,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, images: int, steps: int = 1) -> None:
        """Counts more steps, which took `images` posters."""
        self._steps += steps
        self._images += images
        now = time.monotonic()
        rate = f"{self.images_per_second:.0f} img/s"
        self._bar.set_postfix_str(rate, refresh=False)
        self._bar.update(steps)
        if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._num_steps - self._steps) * (now - self._start) / self._steps
            steps, of = self._done + self._steps, self._done + self._num_steps
            print(f"{self._name}: {self._unit} {steps}/{of}, {rate}, {left:.0f} s left")
            sys.stdout.flush()

    @property
    def images_per_second(self) -> float:
        """The rate since it began."""
        return self._images / self.seconds

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return time.monotonic() - self._start
