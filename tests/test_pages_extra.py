"""Without the extra ``pages`` everything but pages works, and pages say what to install."""

from __future__ import annotations

import subprocess
import sys


def test_pages_name_the_extra_that_they_need() -> None:
    code = (
        "import sys\n"
        "sys.modules.update({'matplotlib': None, 'jinja2': None, 'PIL': None})\n"
        "import torch, pixelize\n"
        "model = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 3, 4, 2, 1))\n"
        "print(pixelize.inspect(model))\n"
        "try: pixelize.write_report\n"
        "except pixelize.PixelizeError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1 convertible" in run.stdout
    assert "matplotlib, jinja2, pillow" in run.stdout and "torch-pixelize[pages]" in run.stdout
