"""What turns programs into views, and which of them a batch gets."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.program import Program

if TYPE_CHECKING:
    from contrastive.augmentations.normalize import Normalize

BackendName = Literal["torch", "native", "triton"]
_OLDEST = 8, 0  # compute capability that the Triton kernels are compiled for in the tests

Render = Callable[[RaggedImages, Program, "Normalize | None", Tensor], None]


def choose_backend(name: BackendName | Literal["auto"], images: RaggedImages, program: Program) -> Render:
    """The function that renders a program on the images' device.

    Args:
        name: "auto" takes the fastest that can.
        images: For their device and channels.
        program: What is to be rendered.

    Raises:
        ValueError: There is no such backend, or it cannot render this program of these images.
    """
    if name == "auto":
        fastest: dict[str, BackendName] = {"cpu": "native", "cuda": "triton"}
        best = fastest.get(images.device.type, "torch")
        return _renderer("torch" if why_not(best, images, program) else best)
    if name not in ("torch", "native", "triton"):
        raise ValueError(f'backend="{name}" is not known. Choose "auto", "torch", "native" or "triton".')
    if reason := why_not(name, images, program):
        raise ValueError(f'backend="{name}" cannot make these views: {reason}. Choose "auto", or "torch".')
    return _renderer(name)


def why_not(name: BackendName, images: RaggedImages, program: Program) -> str | None:
    """Why a backend cannot render a program of these images; None if it can."""
    device = images.device.type
    if name == "native":
        return None if device == "cpu" else f"it runs on the CPU, and the images are on {images.device}"
    if name == "triton":
        if device != "cuda":
            return f"it runs on NVIDIA GPUs, and the images are on {images.device}"
        if torch.version.cuda is None or torch.cuda.get_device_capability(images.device) < _OLDEST:
            return "it is compiled for NVIDIA GPUs of compute capability 8.0 (Ampere) or newer"
        if find_spec("triton") is None:
            return "Triton is not installed; pip install triton"
        from contrastive.augmentations.backends import triton_backend

        return triton_backend.why_not(images, program)
    return None


def _renderer(name: str) -> Render:
    # Imported only when used: each brings a compiler along.
    if name == "native":
        from contrastive.augmentations.backends.native_backend import render
    elif name == "triton":
        from contrastive.augmentations.backends.triton_backend import render
    else:
        from contrastive.augmentations.backends.torch_backend import render
    return render
