"""How many threads torch may take, from files such as a container has."""

import os
from pathlib import Path

import pytest
import torch

from converters.threads import cpu_quota, limit_threads, threads, usable_processors


def test_the_least_quota_above_a_process_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/box\n")
    box = tmp_path / "sys/fs/cgroup/pod/box"
    box.mkdir(parents=True)
    assert cpu_quota(tmp_path) is None
    (box / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    (box.parent / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path) == 0.5
    assert usable_processors(tmp_path) == 1


def test_version_one(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/box\n2:memory:/box\n")
    (tmp_path / "sys/fs/cgroup/cpu/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us").write_text("250000")
    (tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(tmp_path) == 2.5


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_processors(tmp_path) == 3


def test_torch_takes_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr("converters.threads.usable_processors", lambda: 2)
        limit_threads()
        assert threads() == "2 threads on 2 processors"
        monkeypatch.setattr("converters.threads.usable_processors", lambda: 4)
        limit_threads()
        assert threads() == "2 threads on 4 processors"
    finally:
        torch.set_num_threads(before)
