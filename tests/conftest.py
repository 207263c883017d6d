"""What several test files need: real images where they are at hand."""

import subprocess
import sys
from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as JPEG files, ``{train,test}/CLASS/NNNN.jpg``, 20 images a class; skips where it is absent."""
    unpack = REAL_DATA / "unpack_cifar10.py"
    if not unpack.exists():
        pytest.skip(f"no real images: {unpack.name} is not beside this checkout")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, unpack, folder, "--per-class", "20"], check=True)
    return folder
