"""Runs the scripts that compile Triton kernels for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def compiled(script: str, cache: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each kernel takes of a GPU, as ``tests.SCRIPT`` prints it.

    A process of its own: tests without a GPU interpret the kernels, which is decided when Triton is imported.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", f"tests.{script}", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
