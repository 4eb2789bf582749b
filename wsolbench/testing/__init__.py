"""Checks for the tests of methods, and a fake GPU for machines without one."""

from wsolbench.testing.checks import CHECKS, MethodUnderTest, check_method, checks_of, run_check, squares

__all__ = ["CHECKS", "MethodUnderTest", "check_method", "checks_of", "run_check", "squares"]
