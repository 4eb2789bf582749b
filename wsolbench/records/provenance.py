"""Provenance of a number: command, date, versions, machine, source revision, seconds."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wsolbench.records.plugins import plugin_digests
from wsolbench.records.program import revisions, version_of


def provenance(
    *,
    seconds: dict[str, float],
    device: str,
    packages: tuple[str, ...] = (),
    threads: int | None = None,
    numerics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the provenance of a number.

    It has command, date, versions, machine, a network's threads and numerics, source revision and seconds per
    stage.
    """
    return {
        **({} if threads is None else {"threads": threads}),
        **({} if numerics is None else {"numerics": dict(numerics)}),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **revisions(),
        **({"plugin_files": files} if (files := plugin_digests()) else {}),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": {
            name: version_of(name) for name in ("wsolbench", "numpy", "opencv-python-headless", *packages)
        },
    }
