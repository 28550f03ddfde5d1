"""What this process may use of the machine: processors and memory, as cgroups (v1 and v2) limit them.

Read by the configuration's defaults. `root` stands for `/` and is another directory in tests only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """Processors for this process: its affinity, or the cgroup's CPU quota when that is less; at least 1.

    A quota of 2.5 processors counts as 2: threads beyond the quota are throttled, for up to 100 ms.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory for this process: the machine's, or the cgroup's limit when that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit_bytes(root)
    return physical if limit is None else min(physical, limit)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota from this process's cgroup up to the root, in processors. None: no quota."""
    quotas = []
    for directory in _directories("cpu", root):
        v2 = _read(directory / "cpu.max").split()
        if len(v2) == 2:
            quota, period = v2
        else:
            quota = _read(directory / "cpu.cfs_quota_us")
            period = _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The smallest memory limit from this process's cgroup up to the root. None: no limit."""
    limits = []
    for directory in _directories("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(directory / name)
            # v1 writes "no limit" as the largest multiple of a page.
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that is left, on the machine and below every limit; idle page cache counts as free."""
    free = [
        int(line.split()[1]) << 10
        for line in _read(root / "proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ]
    for directory in _directories("memory", root):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _read(directory / limit_name), _read(directory / used_name)
            if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:
                lines = dict(line.split(maxsplit=1) for line in _read(directory / "memory.stat").splitlines())
                free.append(int(limit) - int(used) + int(lines.get(cache_name, "0")))
    return max(0, min(free, default=available_memory_bytes(root)))


def _directories(controller: str, root: Path) -> Iterator[Path]:
    """The directories that hold this process's limits for `controller`, innermost first."""
    groups = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(",") if names else ["v2"] if number == "0" else []:
            groups[name] = path

    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        if kind[0] == "cgroup2":
            group = groups.get("v2")
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            group = groups.get(controller)
        else:
            continue
        if group is None:
            continue
        mount = root / fields[4].replace("\\040", " ").lstrip("/")
        directory = mount / _below(group, fields[3])
        while True:
            yield directory
            if directory == mount:
                break
            directory = directory.parent


def _below(path: str, mount_root: str) -> str:
    """`path` relative to what is mounted. In a container the path may lie outside of it: then the mount."""
    if mount_root == "/":
        relative = path.lstrip("/")
    elif path.startswith(mount_root + "/"):
        relative = path[len(mount_root) + 1 :]
    else:
        relative = ""
    return "" if ".." in relative.split("/") else relative


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
