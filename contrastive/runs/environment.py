"""What a run's record says of the software and the machine, so that a number can be traced to both."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("torchvision", "pytorch-lightning", "torchmetrics", "kornia", "timm", "numpy")


def commit() -> str | None:
    """The commit of the checkout this package lies in, ``+changes`` where files differ; None for an installed copy."""
    if _git("ls-files", "--error-unmatch", "module.py") is None:
        return None  # an installed copy, even where its virtual environment lies in somebody's repository
    head = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{head}+changes" if changes else head  # rows are appended while measuring: they are no change of the code


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on."""
    import torch

    found = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, unlike metadata's
    for name in ("contrastive-lightning", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str | int | float | list[str] | None]:
    """Processor, usable cores, memory in GiB, and the names of the GPUs. No host or user names."""
    import torch

    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """What a run computes on, in a few words for people."""
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{len(os.sched_getaffinity(0))} CPU cores ({_cpu_name()})"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", PACKAGE, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
