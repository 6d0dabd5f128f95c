"""What all command lines have in common: flags, --help, and the import of TensorFlow.

A command is a module with flags, a docstring and

    if __name__ == "__main__":
        command_line.run(main)
"""

import contextlib
import ctypes
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable

from absl import app, flags, logging

from trainer import config

_HELP_FLAGS = ("help", "h", "helpshort")
_WIDTH = 100

# What TensorFlow reads when it is imported, or first uses a GPU. The user's own values count.
_ENVIRONMENT = {
    # Left off on CPUs without AVX512-VNNI, where it doubles the speed of the reference CNN, too.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    # Otherwise a command takes all of a GPU's memory, and none can run beside it.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    # A GPU has threads of its own, so that its kernels do not wait behind posters to decode.
    "TF_GPU_THREAD_MODE": "gpu_private",
}

_VERBOSE = flags.DEFINE_bool(
    "verbose", False, "Show TensorFlow's own messages.", module_name="other"
)


def run(main: Callable[[list[str]], None], takes_arguments: bool = False) -> None:
    """Runs a command's `main` with what follows its flags; a user's mistake ends in one message.

    Args:
        main: takes the arguments that are not flags.
        takes_arguments: whether there may be any.
    """

    def checked(argv: list[str]) -> None:
        if len(argv) > 1 and not takes_arguments:
            sys.exit(f"Unknown argument {argv[1]!r}: settings are given as --name=value.")
        try:
            main(argv[1:])
        except config.UsageError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("Stopped.")

    app.run(checked, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    if {word.lstrip("-") for word in argv[1:] if word.startswith("-")} & set(_HELP_FLAGS):
        print(format_help(sys.modules["__main__"].__doc__, argv[0]))
        sys.exit(0)
    return app.parse_flags_with_usage(argv)


def format_help(docstring: str, command: str) -> str:
    """Returns what --help prints: what a command does, and its flags in groups.

    Args:
        docstring: of the command's module.
        command: `sys.argv[0]`, under which absl has the command's own flags.
    """
    blocks = [docstring.strip()]
    groups = {"flags": command, **{group: group for group in config.GROUPS}, "other": "other"}
    of_modules = flags.FLAGS.flags_by_module_dict()
    for heading, module in groups.items():
        if module in of_modules:
            blocks += [heading.upper(), *map(_describe, of_modules[module])]
    return "\n\n".join(blocks)


def _describe(flag: flags.Flag) -> str:
    """Returns a flag with its default, and below it what it means."""
    default = "" if flag.default is None else flag.default_as_str.strip("'")
    name = f"[no]{flag.name} (default: {default})" if flag.boolean else f"{flag.name}={default}"
    indent = " " * 8
    meaning = textwrap.fill(flag.help, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"  --{name}\n{meaning}"


def import_tensorflow() -> None:
    """Imports TensorFlow as all commands need it and, unless --verbose, without its messages."""
    _keep_posters_out_of_the_heap()
    import_stock_tensorflow(_VERBOSE.value)


def import_stock_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and leaves how the heap is allocated as it is."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if verbose:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    with _held_back_stderr():
        import tensorflow  # noqa: F401


def _keep_posters_out_of_the_heap() -> None:
    """Has glibc map every block of 256 KB or more on its own, and give it back when freed.

    Otherwise its threshold grows to 32 MB and each thread's heap is left with holes of
    decoded posters: 1 GB more for the cache of the real ones.
    """
    m_mmap_threshold = -3  # As in <malloc.h>.
    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 256 << 10)


@contextlib.contextmanager
def _held_back_stderr():
    """Keeps what is written to file descriptor 2 and shows it only if an error follows.

    Some messages come before TF_CPP_MIN_LOG_LEVEL is read, from C++ code that does not
    know `sys.stderr`.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
