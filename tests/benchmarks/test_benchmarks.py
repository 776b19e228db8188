"""The benchmarks run and print their table; whether a bar is passed depends on the machine and is not tested here."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmarks_run_and_show_their_bars():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.benchmarks", "--short"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    for bar in (">= 5 M/s", "<= 3 %", ">= 20x", ">= 5x", ">= 1.3x", ">= 1.4x", "< 0.7 s", "<= 2 %"):
        assert bar in done.stdout
    assert done.stdout.count(">= 0.95x") == 6
