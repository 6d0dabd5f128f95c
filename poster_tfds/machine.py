"""What this process may use of its machine: cores and memory, also in a container or a batch job.

Docker, Kubernetes, Slurm and systemd limit both by cgroups, one within another: the limits of
all that a process is in hold for it.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator

_ROOT = pathlib.Path("/")


def num_cores(root: pathlib.Path = _ROOT, num_allowed: int | None = None) -> int:
    """Returns the cores that this process may use, at least 1."""
    cores = num_allowed or len(os.sched_getaffinity(0))
    for cgroup in _cgroups("cpu", root):
        # Microseconds of all cores together in a period; none if it is `max` or -1.
        quota = _read_ints(cgroup / "cpu.max") or [
            *_read_ints(cgroup / "cpu.cfs_quota_us"),
            *_read_ints(cgroup / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0] > 0:
            cores = min(cores, max(1, quota[0] // quota[1]))
    return cores


def available_memory(root: pathlib.Path = _ROOT) -> int:
    """Returns the bytes that this process may still take."""
    available = _read_field(root / "proc/meminfo", "MemAvailable:") * 1024
    for cgroup in _cgroups("memory", root):
        limit = _read_ints(cgroup / "memory.max") or _read_ints(cgroup / "memory.limit_in_bytes")
        used = _read_ints(cgroup / "memory.current") or _read_ints(cgroup / "memory.usage_in_bytes")
        if limit and used:
            # What files left in memory is given back when it is wanted. The first name is
            # version 1's, with what is in the cgroups within.
            statistics = cgroup / "memory.stat"
            reclaimable = _read_field(statistics, "total_inactive_file") or _read_field(
                statistics, "inactive_file"
            )
            available = min(available, limit[0] - used[0] + reclaimable)
    return max(available, 0)


def free_disk(path: str | os.PathLike) -> int:
    """Returns the bytes that are free where a folder is, or would be made."""
    folder = pathlib.Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _cgroups(controller: str, root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the directories of the cgroups that this process is in, from its own to the outermost.

    Of both versions, as cgroups(7) describes them: /proc/self/cgroup has the cgroup's path, and
    /proc/self/mountinfo where the cgroups are mounted, and which of them is at the mount's root.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    own = {}
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for mount in mounts:
        place, _, file_system = mount.partition(" - ")
        _, _, _, mounted, mount_point, *_ = place.split()
        kind, _, options = file_system.split(maxsplit=2)
        is_version_1 = kind == "cgroup" and controller in options.split(",")
        path = own.get(controller if is_version_1 else "")  # Version 2 names no controllers.
        if path is None or not (is_version_1 or kind == "cgroup2"):
            continue
        path, outermost = pathlib.PurePosixPath(path), root / mount_point.lstrip("/")
        # In a container it may be a path of the host's, which is not there.
        is_inside = path.is_relative_to(mounted)
        below = path.relative_to(mounted) if is_inside else pathlib.PurePosixPath()
        yield from (outermost / part for part in (below, *below.parents))


def _read_ints(path: pathlib.Path) -> list[int]:
    """Returns the numbers in a file; nothing if it is not there or has a word in it."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _read_field(path: pathlib.Path, name: str) -> int:
    """Returns the number that follows a name in a file, or 0 if there is none."""
    try:
        words = path.read_text().split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError, IndexError):
        return 0
