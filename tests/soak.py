"""Kills, stops and damages runs at random for a while; each must end with the same bits.

    python -m tests.soak --minutes=15

Prints a line for each blow and the figures at the end; where a run differs it exits with 1 and
keeps the runs.
"""

import argparse
import itertools
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

from tests import conftest, test_resume

_FLAGS = (
    "--deterministic",
    "--preset=reference",
    "--epochs=30",
    "--augment=flip,crop,color,erase",
    "--checkpoint_every_steps=5",
    "--keep_checkpoints=3",
)
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Runs until the minutes are over, then lets the last run finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    print(f"seed {arguments.seed}, {arguments.minutes} minutes", flush=True)
    end = time.monotonic() + arguments.minutes * 60
    directory = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"runs in {directory}", flush=True)
    conftest.tfds_build("--config=synthetic", f"--data_dir={directory / 'data'}")
    begin = time.monotonic()
    whole = directory / "whole"
    test_resume.finish(test_resume.start(directory / "data", whole, *_FLAGS))
    seconds_whole = time.monotonic() - begin
    blows, damages, unsaved, lost_seconds = 0, 0, [], 0.0
    for number in itertools.count():
        begin = time.monotonic()
        run_dir = directory / f"run-{number}"
        run_blows = 0
        while True:
            process = test_resume.start(directory / "data", run_dir, *_FLAGS)
            if time.monotonic() < end and strike(process, run_dir, rng, unsaved):
                run_blows += 1
                damages += maybe_damage(run_dir, rng)
            else:
                test_resume.finish(process)
                break
        test_resume.assert_same_run(whole, run_dir)
        blows += run_blows
        lost_seconds += time.monotonic() - begin - seconds_whole
        print(f"run {number}: {run_blows} blows, the same bits", flush=True)
        if time.monotonic() >= end:
            break
    shutil.rmtree(directory)
    print(
        f"{blows} blows and {damages} damaged checkpoints survived in {number + 1} runs.\n"
        f"Kills came {sum(unsaved) / max(len(unsaved), 1):.2f} s after the last checkpoint in the "
        f"mean, {max(unsaved, default=0):.2f} s at most.\n"
        f"Time lost a blow: {lost_seconds / max(blows, 1):.1f} s, start-up included; a whole run "
        f"takes {seconds_whole:.1f} s."
    )


def strike(process, run_dir: pathlib.Path, rng: random.Random, unsaved: list[float]) -> bool:
    """Lets a run come further and ends it; returns whether it had not ended by itself."""
    before = test_resume.steps(run_dir)[-1:]
    if not test_resume.wait_for(lambda: test_resume.steps(run_dir)[-1:] > before, process):
        return False
    time.sleep(rng.uniform(0, 2))
    if process.poll() is not None:
        return False
    number = rng.choice(_SIGNALS)
    process.send_signal(number)
    out, err = process.communicate()
    # One that has just come to its end no longer waits for signals.
    ended_well = process.returncode == 0 or "steps are done" in out
    assert number == signal.SIGKILL or ended_well, out + err
    newest = run_dir / "checkpoints" / f"{test_resume.steps(run_dir)[-1]:08}"
    if number == signal.SIGKILL:
        unsaved.append(max(time.time() - newest.stat().st_mtime, 0))
    print(f"  {number.name} after the checkpoint of step {int(newest.name)}", flush=True)
    return True


def maybe_damage(run_dir: pathlib.Path, rng: random.Random) -> int:
    """Damages the newest of several checkpoints, now and then; returns how many."""
    steps = test_resume.steps(run_dir)
    if len(steps) < 2 or rng.random() < 0.7:
        return 0
    newest = run_dir / "checkpoints" / f"{steps[-1]:08}"
    path = rng.choice(sorted(newest.iterdir()))
    kind = rng.choice(("flipped", "cut", "gone"))
    if kind == "flipped":
        test_resume.damage(path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    print(f"  {kind}: {path.name} of step {steps[-1]}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
