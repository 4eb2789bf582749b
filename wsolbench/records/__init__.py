"""Records of runs: one JSON file each, with everything that its numbers depend on."""

from wsolbench.records.provenance import provenance
from wsolbench.records.record import (
    LONGEST_NAME,
    SCHEMA,
    SHARDS,
    FoundRecords,
    MetricValue,
    RunRecord,
    find_records,
    parse_record,
    precedence,
    read_record,
    read_records,
    settings_of,
)

__all__ = [
    "LONGEST_NAME",
    "SCHEMA",
    "SHARDS",
    "FoundRecords",
    "MetricValue",
    "RunRecord",
    "find_records",
    "parse_record",
    "precedence",
    "provenance",
    "read_record",
    "read_records",
    "settings_of",
]
