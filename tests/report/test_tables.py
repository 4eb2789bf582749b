from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue
from wsolbench.report.tables import describe_protocol, escape_markdown, format_value, metrics_markdown, metrics_table, sort_policies


def shown(record: Any, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), legacy_windows=False)  # noqa: SIM115, PTH123
    console.print(metrics_table(record))
    return console.export_text()
