"""Checks, one after the other: whatever one of them does, the others have their turn."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trainer import config

PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"


class Finding(NamedTuple):
    """What came of a check."""

    outcome: str  # PASSED, FAILED or LEFT_OUT.
    detail: str  # What was measured, against which limit, or why nothing was.
    flags: tuple[str, ...] = ()  # Of `python -m trainer`, that it speaks for.


Check = Callable[[], Finding]


def judge(is_right: bool, detail: str) -> Finding:
    return Finding(PASSED if is_right else FAILED, detail)


def choose(checks: Mapping[str, Check], starts: Sequence[str]) -> dict[str, Check]:
    """Returns the checks whose names begin as --checks says, or all."""
    for start in starts:
        if not any(name.startswith(start) for name in checks):
            raise config.UsageError(
                f"--checks={start}: no check begins so; there are:\n  " + "\n  ".join(checks)
            )
    return {name: check for name, check in checks.items() if name.startswith(tuple(starts or [""]))}


def run_checks(
    checks: Mapping[str, Check],
    seconds: float,
    tell: Callable[[str, Finding], None],
) -> dict[str, Finding]:
    """Runs checks in their order, tells of each finding as it comes, and returns all by name.

    An exception in a check is a failure with its message. After Ctrl-C, and when the time is
    over, the checks that have not begun are left out.
    """
    end = time.monotonic() + seconds
    findings, interrupted = {}, False
    for name, check in checks.items():
        if interrupted:
            finding = Finding(LEFT_OUT, "it was interrupted")
        elif time.monotonic() >= end:
            finding = Finding(LEFT_OUT, "the time was over; --minutes gives more")
        else:
            try:
                finding = check()
            except KeyboardInterrupt:
                interrupted = True
                finding = Finding(LEFT_OUT, "it was interrupted")
            except Exception as error:  # Whatever is wrong with the machine is a finding.
                finding = Finding(FAILED, f"{type(error).__name__}: {_summarize(str(error))}")
        findings[name] = finding
        tell(name, finding)
    return findings


def _summarize(message: str) -> str:
    """Returns the line of an error's message that says what happened.

    TensorFlow's begin with "Graph execution error:" and have the cause below the stack.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return lines[-1] if lines[0].endswith(":") else lines[0]
