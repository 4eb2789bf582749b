"""Checks for the tests of methods and detectors, and a fake GPU for machines without one."""

from wsolbench.testing.checks import CHECKS, check_method, checks_of, run_check
from wsolbench.testing.detectors import check_detector, detector_waits
from wsolbench.testing.subject import MethodUnderTest, squares

__all__ = [
    "CHECKS",
    "MethodUnderTest",
    "check_detector",
    "check_method",
    "checks_of",
    "detector_waits",
    "run_check",
    "squares",
]
