"""Cores and memory are those that all cgroups leave; object stores are those TensorFlow reads."""

import os

import pytest
import tensorflow_datasets as tfds

from poster_tfds import faults, machine, poster_tfds_dataset_builder
from trainer import config
from trainer.data import splits

CORES = 8
MOUNT = "30 23 0:26 {root} /{mount_point} rw,nosuid shared:4 - {kind} {kind} rw,{controllers}\n"
VERSION_2 = {
    "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
    "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/root rw\n"
    + MOUNT.format(root="/", mount_point="sys/fs/cgroup", kind="cgroup2", controllers="nsdelegate"),
}
# The container's cgroup is at the root of what is mounted in it.
VERSION_1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/\n",
    "proc/self/mountinfo": "".join(
        MOUNT.format(root=root, mount_point=place, kind="cgroup", controllers=controllers)
        for root, place, controllers in (
            ("/docker/ab", "sys/fs/cgroup/memory", "memory"),
            ("/docker/ab", "mnt/cpu", "cpu,cpuacct"),
            ("/", "sys/fs/cgroup/systemd", "name=systemd"),
        )
    )
    + MOUNT.format(root="/", mount_point="unified", kind="cgroup2", controllers="nsdelegate"),
}
OWN = "sys/fs/cgroup/slurm/job_7/step_0"
JOB = "sys/fs/cgroup/slurm/job_7"
TOP = "sys/fs/cgroup"


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CORES),
        (VERSION_2, CORES),
        (VERSION_2 | {f"{OWN}/cpu.max": "max 100000\n"}, CORES),
        (VERSION_2 | {f"{OWN}/cpu.max": "250000 100000\n"}, 2),
        (VERSION_2 | {f"{OWN}/cpu.max": "max 100000", f"{JOB}/cpu.max": "300000 100000"}, 3),
        (VERSION_2 | {f"{OWN}/cpu.max": "500000 100000", f"{TOP}/cpu.max": "400000 100000"}, 4),
        (VERSION_1 | {"mnt/cpu/cpu.cfs_quota_us": "-1", "mnt/cpu/cpu.cfs_period_us": "100"}, CORES),
        (VERSION_1 | {"mnt/cpu/cpu.cfs_quota_us": "500", "mnt/cpu/cpu.cfs_period_us": "100"}, 5),
        (
            # What the mount's root is called in another namespace.
            {**VERSION_1, "proc/self/cgroup": "3:cpu,cpuacct:/kubepods/pod1\n"}
            | {"mnt/cpu/cpu.cfs_quota_us": "500", "mnt/cpu/cpu.cfs_period_us": "100"},
            5,
        ),
    ],
)
def test_cores_are_those_of_the_strictest_cgroup(tmp_path, files, expected):
    write(tmp_path, files)
    assert machine.num_cores(tmp_path, CORES) == expected


MEMINFO = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8192),
        (VERSION_2, 8192),
        (VERSION_2 | {f"{OWN}/memory.max": "5000", f"{OWN}/memory.current": "1000"}, 4000),
        (VERSION_2 | {f"{OWN}/memory.max": "5000", f"{OWN}/memory.current": "6000"}, 0),
        (
            VERSION_2
            | {f"{OWN}/memory.max": "5000", f"{OWN}/memory.current": "1000"}
            | {f"{JOB}/memory.max": "7000", f"{JOB}/memory.current": "6000"}
            | {f"{JOB}/memory.stat": "anon 700\ninactive_file 300\nactive_file 0"},
            1300,
        ),
        (
            VERSION_1
            | {f"{TOP}/memory/memory.limit_in_bytes": "5000"}
            | {f"{TOP}/memory/memory.usage_in_bytes": "2000"}
            | {f"{TOP}/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 500"},
            3500,
        ),
    ],
)
def test_free_memory_is_what_the_strictest_cgroup_leaves(tmp_path, files, expected):
    write(tmp_path, MEMINFO | files)
    assert machine.available_memory(tmp_path) == expected


def test_a_process_uses_the_cores_that_it_may_run_on():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert machine.available_memory() > 10**8


def test_a_store_that_is_not_read_is_refused_wherever_it_is_named(tmp_path):
    builder = poster_tfds_dataset_builder.Builder(config="imdb", data_dir=tmp_path)
    with pytest.raises(faults.UserError, match=r"--manual_dir=s3://bucket: TensorFlow .* no s3://"):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir="s3://bucket")
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(faults.UserError, match=r"--data_dir=s3://b/x: .*\. Mount the bucket"):
        poster_tfds_dataset_builder.Builder(config="synthetic", data_dir="s3://b/x")
    with pytest.raises(config.UsageError, match=r"--data_dir=s3://bucket: TensorFlow .* no s3://"):
        splits.open_dataset("poster_tfds/synthetic", "s3://bucket")
