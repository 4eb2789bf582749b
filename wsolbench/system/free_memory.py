"""The memory that is still free for this process."""

from __future__ import annotations

import re
from pathlib import Path

_CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Limit and use of a container, and the part of the use that is cached files. Both versions of cgroups."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still use, or None if the system does not state them.

    The least of what is available on the machine and in its container. `root` is the root of the system.
    """
    known = []
    if machine := re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE):
        known.append(1024 * int(machine[1]))
    for limit, use, cached in _CGROUPS:
        most, used = _text(root / limit).strip(), _text(root / use).strip()
        if most.isdecimal() and used.isdecimal():
            files = re.search(rf"^{cached} (\d+)", _text((root / use).with_name("memory.stat")), re.MULTILINE)
            known.append(max(0, int(most) - int(used) + (int(files[1]) if files else 0)))
    return min(known, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
