"""The cases of ``second_device_cases.py``, in a process of their own.

A second device, once it is there, is there for all that runs in its process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_device


@pytest.mark.slow
@pytest.mark.skipif(second_device.missing() is not None, reason=str(second_device.missing()))
def test_everything_stays_on_its_device():
    root = Path(__file__).parent.parent
    places = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            str(root / "tests" / "second_device_cases.py"),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
