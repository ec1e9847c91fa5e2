"""Counts what a script checks, and ends it at the first check that fails."""

import sys

COUNT = 0


def check(holds, what):
    global COUNT
    COUNT += 1
    if not holds:
        sys.exit(f"failed: {what}")


def report():
    """Prints the closing line of a script whose checks all hold."""
    print(f"{COUNT} passed, 0 failed")
