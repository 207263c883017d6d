"""Programs rendered on the CPU, each view in one pass through the core's cache, on as many threads as torch may use."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from contrastive.augmentations.backends import native_kernels
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.program import Program, pack

if TYPE_CHECKING:
    from contrastive.augmentations.normalize import Normalize

_WRITTEN_AS = {
    torch.float32: native_kernels.FLOAT32,
    torch.bfloat16: native_kernels.BFLOAT16,
    torch.float16: native_kernels.FLOAT16,
}
_PIXELS_WORTH_A_THREAD = 2**16  # of views: handing over less costs more than it saves
_SHARES_PER_THREAD = 4  # boxes differ in size: who has finished takes another share


def render(images: RaggedImages, program: Program, normalize: "Normalize | None", out: Tensor) -> None:
    """Write each image's view. An image's view does not depend on the others, nor on the number of threads.

    Args:
        images: On the CPU.
        program: For these images.
        normalize: Applied last; None leaves the views in [0, 1].
        out: [B, C, *program.size]; float32, or bfloat16 or float16 rounded from it; contiguous or channels_last.
    """
    channels_last = not out.is_contiguous()
    flat = (out.permute(0, 2, 3, 1) if channels_last else out).view(-1)
    written = (flat if out.dtype == torch.float32 else flat.view(torch.uint16)).numpy()
    pixels = images.pixels.numpy()
    largest = np.float32(255 if images.dtype == torch.uint8 else 1)
    table = pack(images, program)
    radii = np.array([slot.radius for slot in program.slots], dtype=np.int64)
    mean = np.zeros(images.channels, np.float32) if normalize is None else np.array(normalize.mean, np.float32)
    std = np.ones(images.channels, np.float32) if normalize is None else np.array(normalize.std, np.float32)
    view_size = images.channels * program.size[0] * program.size[1]

    def render_share(share: range) -> None:
        native_kernels.render_images(
            pixels,
            largest,
            table[share.start : share.stop],
            radii,
            program.size,
            program.bicubic,
            mean,
            np.reciprocal(std),
            written[share.start * view_size : share.stop * view_size],
            _WRITTEN_AS[out.dtype],
            channels_last,
        )

    shares = _shares(len(images), program.size[0] * program.size[1], torch.get_num_threads())
    if len(shares) == 1:
        render_share(shares[0])
    else:
        for _ in _pool(torch.get_num_threads(), os.getpid()).map(render_share, shares):
            pass  # an exception in a thread is raised here


def _shares(num_images: int, pixels_per_view: int, num_threads: int) -> list[range]:
    """Consecutive images that are rendered together, in about equal parts; one part if threads do not pay."""
    if num_threads == 1:
        return [range(num_images)]
    smallest = -(-_PIXELS_WORTH_A_THREAD // pixels_per_view)
    share = max(smallest, -(-num_images // (_SHARES_PER_THREAD * num_threads)))
    return [range(start, min(start + share, num_images)) for start in range(0, num_images, share)]


@lru_cache(maxsize=1)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads for a process: after a fork the child needs its own, the parent's are not in it."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="augmentations")
