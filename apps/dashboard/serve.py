"""How the dashboard is started: on this machine only, without a browser window and without usage statistics."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("app.py")


def command(store: Path, port: int = 8501) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the dashboard's process.

    What must hold whatever a user's own Streamlit settings say goes in by flags; the theme comes from the
    `.streamlit/config.toml` next to the script, which Streamlit reads last.

    Args:
        store: the store to show.
        port: on localhost.
    """
    flags = {
        "server.address": "localhost",
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "runner.magicEnabled": "false",
        "browser.gatherUsageStats": "false",
    }
    argv = [sys.executable, "-m", "streamlit", "run", str(SCRIPT), *(f"--{name}={value}" for name, value in flags.items())]
    # `apps` and `workbench` must be found from any working directory, also from a checkout that was not installed.
    source = str(SCRIPT.parents[2])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    return argv, {**os.environ, "WORKBENCH_HOME": str(Path(store).absolute()), "PYTHONPATH": path}
