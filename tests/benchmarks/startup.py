"""How long the command line takes to say what it can do, in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMAND = "import sys; sys.argv = ['workbench', '--help']; from workbench.cli import main; main()"


def help_seconds(times: int = 7) -> float:
    """Median wall time of `workbench --help`."""
    seconds: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", COMMAND], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
