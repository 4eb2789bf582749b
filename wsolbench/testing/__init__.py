"""Checks for the tests of methods, and a fake GPU for machines without one."""

from wsolbench.testing.checks import CHECKS, check_method, checks_of, run_check
from wsolbench.testing.subject import MethodUnderTest, squares

__all__ = ["CHECKS", "MethodUnderTest", "check_method", "checks_of", "run_check", "squares"]
