"""The memory that is free: of the machine, or of a container if that is less."""

from __future__ import annotations

import pytest

from wsolbench.system.free_memory import available_bytes

MACHINE = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   500 kB\n"}
FILES = {
    "sys/fs/cgroup/memory.max": "300000\n",
    "sys/fs/cgroup/memory.current": "120000\n",
    "sys/fs/cgroup/memory.stat": "anon 100000\ninactive_file 20000\n",
}
FIRST = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "300000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "320000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 512_000),
        ({**MACHINE, **FILES}, 200_000),
        ({**MACHINE, **FILES, "sys/fs/cgroup/memory.max": "max\n"}, 512_000),
        ({**MACHINE, **FILES, "sys/fs/cgroup/memory.max": "9999999\n"}, 512_000),
        ({**MACHINE, **FIRST}, 0),
    ],
)
def test_the_least_of_machine_and_container_is_available(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path) == expected


def test_this_machine_states_it():
    assert (available_bytes() or 0) > 0
