"""Where all commands print, and how they call this program."""

import shutil
import sys
from pathlib import Path

from rich.console import Console

console = Console(highlight=False)


def program() -> str:
    """How to call this program again: by name where the shell finds it, else as it was called now."""
    called = Path(sys.argv[0])
    if shutil.which("contrastive") or called.name not in ("contrastive", "__main__.py"):
        return "contrastive"
    return str(called) if called.name == "contrastive" else "python -m contrastive"
