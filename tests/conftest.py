"""What several test files need: real images where they are at hand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests are small, and many processes share the cores

import jaxtyping
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU, slowly

from tests.ranks import Ranks

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


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two real processes."""
    ranks = Ranks(2, tmp_path_factory.mktemp("two_ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Three real processes."""
    ranks = Ranks(3, tmp_path_factory.mktemp("three_ranks"))
    yield ranks
    ranks.close()


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Turns jaxtyping's hook off, so that wrong types reach the code and its own messages, as they do for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
