"""Views on NVIDIA GPUs: a few Triton kernels that read the original pixels, whatever their sizes, and write the views.

Views of up to 64 x 64 pixels take one launch, larger ones two to four. The host sends one table and never waits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from contrastive.augmentations.backends import triton_kernels
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.normalize import Normalize
from contrastive.augmentations.program import Code, Program, pack

_SMALL_SIDE = 64  # as many pixels as a GPU's multiprocessor can hold in registers at once, squared
_PIXELS_OF_A_WARP = 256  # eight for each thread: fewer repeat more of a row's work, more do not fit into registers
_TILE_WARPS = 4
_INT32 = 2**31


@dataclass(frozen=True)
class Launch:
    """A kernel, how many programs of it run, and all that they are told."""

    kernel: Any
    num_programs: int
    arguments: dict[str, Any]
    num_warps: int = _TILE_WARPS

    @property
    def options(self) -> dict[str, Any]:
        """For the compiler.

        One that fuses multiplications with additions as it sees fit rounds differently from kernel to kernel, and so
        from pipeline to pipeline and GPU to GPU. Where fusing pays, the kernels ask for it.
        """
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}


def why_not(images: RaggedImages, program: Program) -> str | None:
    """What the kernels cannot do of this; None if they can do it all.

    It asks what a pipeline may draw, not what it has drawn: a view's backend must not depend on its neighbours.
    """
    if images.channels != 3:
        return f"the Triton kernels take RGB images, not {images.channels} channel{'s' if images.channels > 1 else ''}"
    if _largest_number(images, program) >= _INT32:
        return "the Triton kernels count pixels in 32 bits, and an image, or a view times a box, has more"
    blur_slots = [place for place, slot in enumerate(program.slots) if Code.BLUR in slot.may_be]
    if max(program.size) <= _SMALL_SIDE or len(blur_slots) == 0:
        return None
    if len(blur_slots) > 1:
        return f"beyond {_SMALL_SIDE} pixels the Triton kernels blur once, not {len(blur_slots)} times"
    if any(Code.CONTRAST in slot.may_be for slot in program.slots[blur_slots[0] :]):
        return f"beyond {_SMALL_SIDE} pixels the Triton kernels adjust contrast before the blur, not after it"
    return None


def render(images: RaggedImages, program: Program, normalize: Normalize | None, out: Tensor) -> None:
    """Write the views of all images.

    Args:
        images: RGB.
        program: What ``why_not`` has nothing against.
        normalize: Applied last; None leaves the views in [0, 1].
        out: [B, 3, H, W] on the images' device, of any float type and with any strides.
    """
    with torch.cuda.device_of(images.pixels):  # Triton launches on the current device
        for launch in prepare(images, program, normalize, out):
            launch.kernel[(launch.num_programs,)](**launch.arguments, **launch.options)


def prepare(images: RaggedImages, program: Program, normalize: Normalize | None, out: Tensor) -> list[Launch]:
    """All that rendering does before the kernels start; the launches are to be made in this order."""
    if len(images) == 0:
        return []
    mean, std = ((0.0,) * 3, (1.0,) * 3) if normalize is None else (normalize.mean, normalize.std)
    output = {"out": out, "mean": tuple(mean), "scale": tuple(1 / deviation for deviation in std)}
    output |= dict(zip(("stride_b", "stride_c", "stride_y", "stride_x"), out.stride(), strict=True))
    arrange = _small_views if max(program.size) <= _SMALL_SIDE else _large_views
    return arrange(images, program, output)


def _small_views(images: RaggedImages, program: Program, output: dict[str, Any]) -> list[Launch]:
    height, width = program.size
    block_height, block_width = triton.next_power_of_2(height), triton.next_power_of_2(width)
    blurred = _blurred_images(program, len(images))
    table, scratch_rows = _upload(images.device, pack(images, program), _places_in(blurred, len(images)))
    arguments = {
        "pixels": images.pixels,
        "table": table,
        "scratch_rows": scratch_rows,
        "scratch": _floats(images.device, len(blurred), 3, height, width),
        **output,
        **_constants(program),
        "BLOCK_HEIGHT": block_height,
        "BLOCK_WIDTH": block_width,
        "RADIUS": tuple(slot.radius for slot in program.slots),
    }
    num_warps = max(1, block_height * block_width // _PIXELS_OF_A_WARP)
    return [Launch(triton_kernels.render_small, len(images), arguments, num_warps)]


def _large_views(images: RaggedImages, program: Program, output: dict[str, Any]) -> list[Launch]:
    height, width = program.size
    num_slots = len(program.slots)
    blur_slot = next((place for place, slot in enumerate(program.slots) if Code.BLUR in slot.may_be), num_slots)
    blurred = _blurred_images(program, len(images))
    rounds = _contrast_rounds(program)
    table, blurred_images, scratch_rows, *contrasts = _upload(
        images.device, pack(images, program), blurred, _places_in(blurred, len(images)), *rounds
    )
    num_tiles = triton_kernels.num_tiles(height, width)
    luma_sums = _floats(images.device, len(images), num_slots, num_tiles)
    scratch = _floats(images.device, len(blurred), 3, height, width)
    half_blurred = torch.empty_like(scratch)
    constants = _constants(program) | {"BLUR_SLOT": blur_slot}
    source = {"pixels": images.pixels, "table": table, "luma_sums": luma_sums}
    launches = [
        # One round after the other: an image's second contrast needs the mean of what its first one made.
        Launch(triton_kernels.sum_luma, num_tiles * len(pairs), {**source, "contrasts": there, **constants})
        for pairs, there in zip(rounds, contrasts, strict=True)
    ]
    target = {"scratch_rows": scratch_rows, "scratch": scratch, **output}
    launches.append(Launch(triton_kernels.render_tile, num_tiles * len(images), {**source, **target, **constants}))
    if len(blurred) > 0:
        constants["RADIUS"] = program.slots[blur_slot].radius
        shared = {"table": table, "blurred": blurred_images, "half_blurred": half_blurred}
        rows = {**shared, "scratch": scratch, **constants}
        launches += [
            Launch(triton_kernels.blur_rows, num_tiles * len(blurred), rows),
            Launch(triton_kernels.blur_columns, num_tiles * len(blurred), {**shared, **output, **constants}),
        ]
    return launches


def _constants(program: Program) -> dict[str, Any]:
    """What kernels are compiled for."""
    height, width = program.size
    may_be = tuple(sum(1 << code for code in set(slot.may_be)) for slot in program.slots)
    return {"HEIGHT": height, "WIDTH": width, "BICUBIC": program.bicubic, "MAY_BE": may_be}


def _blurred_images(program: Program, count: int) -> npt.NDArray[np.int64]:
    is_blurred = np.zeros(count, dtype=np.bool_)
    for slot in program.slots:
        if Code.BLUR in slot.may_be:
            is_blurred |= slot.codes == Code.BLUR
    return np.flatnonzero(is_blurred)


def _contrast_rounds(program: Program) -> list[npt.NDArray[np.int64]]:
    """For the images' first contrast, their second one, ...: pairs of an image and the slot it is in."""
    if len(program.slots) == 0:
        return []
    is_contrast = np.stack([slot.codes == Code.CONTRAST for slot in program.slots])  # [S, B]
    number = is_contrast.cumsum(axis=0)
    rounds = []
    for this in range(1, int(number.max()) + 1):
        slots, rows = np.nonzero(is_contrast & (number == this))
        rounds.append(np.stack([rows, slots], axis=1))
    return rounds


def _places_in(chosen: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """For each image its place in the list of the chosen ones; -1 for those that are not in it."""
    places = np.full(count, -1)
    places[chosen] = np.arange(len(chosen))
    return places


def _upload(device: torch.device, *arrays: npt.NDArray[Any]) -> tuple[Tensor, ...]:
    """Integers, flattened, as int32 on the device, by one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.int32, casting="same_kind"))
    if device.type == "cuda":
        joined = joined.pin_memory()  # PyTorch keeps the page-locked memory until the copy is done
    there: tuple[Tensor, ...] = joined.to(device, non_blocking=True).split([array.size for array in arrays])
    return there


def _floats(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def _largest_number(images: RaggedImages, program: Program) -> int:
    """The largest integer that the kernels compute in 32 bits."""
    if len(images) == 0:
        return 0
    rows = 2 * program.grid_height.max() * program.height.max()
    columns = 2 * program.grid_width.max() * program.width.max()
    height, width = program.size
    return max(int(rows), int(columns), int((images.heights * images.widths).max()), 3 * height * width)
