"""The trainer on a machine whose memory is taken."""

import runpy

from poster_tfds import machine

machine.available_memory = lambda: 0
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
