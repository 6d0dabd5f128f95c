"""A request to stop, by signal, that loses nothing."""

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While it is entered, SIGTERM and Ctrl-C ask for a stop; the second one stops at once.

    A thread waits for them: Python's own handlers would wait for the step to end. Entered in
    another thread than the main one, it leaves signals alone, and nothing asks for a stop.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._is_listening = threading.current_thread() is threading.main_thread()
        if not self._is_listening:  # Signals are the main thread's, whatever it does with them.
            return self
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = {number: signal.signal(number, _leave_to_thread) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._writer)  # An event loop's, it may be.
        threading.Thread(target=self._wait, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if not self._is_listening:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)

    def _wait(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] not in _SIGNALS:
                    continue
                if self.requested:
                    os._exit(128 + number[0])  # As a shell reports it.
                self.requested = True
                name = signal.Signals(number[0]).name
                print(
                    f"\n{name}: stopping, with a checkpoint. Once more stops at once.",
                    file=sys.stderr,
                    flush=True,
                )


def _leave_to_thread(number, frame) -> None:
    del number, frame
