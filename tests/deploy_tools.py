"""The tools that what is deployed is validated with: from wheels, and built by Go.

``make deploy-tools`` installs them. Tests that need one skip where it is absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

#: Where those are that Go builds.
FOLDER = Path(os.environ.get("DEPLOY_TOOLS", "~/.cache/imagewarden/tools")).expanduser()

_SECONDS = 60.0


def run(tool: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What it prints. Skips the test where there is no such tool; raises ``AssertionError`` with
    what it says where it fails."""
    folders = os.pathsep.join([str(FOLDER), sysconfig.get_path("scripts"), os.environ["PATH"]])
    if (found := shutil.which(tool, path=folders)) is None:
        pytest.skip(f"{tool} is not installed; run make deploy-tools")
    ended = subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=_SECONDS
    )
    assert ended.returncode == 0, f"{tool} failed: {ended.stdout}{ended.stderr}"
    return ended.stdout
