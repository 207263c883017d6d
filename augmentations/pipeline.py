"""Random views of a batch, on the images' own device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from contrastive.augmentations.backends import BackendName, choose_backend
from contrastive.augmentations.frame import Frame
from contrastive.augmentations.images import Images, RaggedImages, as_ragged
from contrastive.augmentations.key import SampleKey, names_of
from contrastive.augmentations.normalize import Normalize
from contrastive.augmentations.operations import (
    CenterCrop,
    GeometricOperation,
    Operation,
    PixelOperation,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    TensorOperation,
)
from contrastive.augmentations.program import Code, Program, Slot
from contrastive.augmentations.randomness import Names, Random, draw

View = Sequence[Operation]


@dataclass(frozen=True)
class Views:
    """Makes views of images, each by its own list of operations.

    A view is a function of (seed, epoch, the image's index, the view's number): on one device it is the same bit for
    bit whatever else is in the batch. Global random state is neither read nor moved, and autocast changes nothing. The
    published pipelines are such objects too: ``dataclasses.replace(simclr_views(224), dtype=torch.bfloat16)``.

    Attributes:
        views: For each view its operations in order. ``Normalize``, if there is one, comes last.
        evaluation: What is done to unaugmented images; without randomness. None cuts the middle out, as large as the
            first view, and normalises it as that; ragged images are first resized so that their shorter side is 8/7 of
            it: 256 pixels for 224, the protocol of ImageNet.
        backend: "native" (CPU, one pass per image), "triton" (NVIDIA) or "torch" (anywhere, the slow reference);
            "auto" takes the fastest that the images' device has. They agree within 1e-5.
        dtype: Of the views: float32, bfloat16 or float16.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.

    Raises:
        TypeError: Something in a view is no operation.
        ValueError: There is no view or an empty one, ``Normalize`` is not the last operation, or the evaluation is
            random.
    """

    views: Sequence[View]
    evaluation: View | None = None
    backend: BackendName | Literal["auto"] = "auto"
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def __post_init__(self) -> None:
        if len(self.views) == 0:
            raise ValueError("A pipeline of 0 views makes nothing. Give a list of operations for each view.")
        for view in [*self.views, *([] if self.evaluation is None else [self.evaluation])]:
            _check_view(view)
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"Views are float32, bfloat16 or float16, but dtype={self.dtype}.")
        if self.memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(
                f"memory_format={self.memory_format} is not known here. Choose torch.contiguous_format or "
                "torch.channels_last."
            )
        if any(operation.num_words for operation in self.evaluation or ()):
            raise ValueError(
                "The evaluation view must not be random, or scores change from call to call. Use Resize, CenterCrop "
                "and Normalize."
            )

    def __call__(self, images: Images, key: SampleKey) -> list[Tensor]:
        """Make the views.

        Args:
            images: uint8, or float32 in [0, 1]: [B, C, H, W], or ``RaggedImages``. RGB for all operations.
            key: Names the random numbers.

        Returns:
            For each view [B, C, size, size], of ``dtype`` and in ``memory_format``, on the images' device.

        Raises:
            TypeError: The images are neither a tensor nor ragged, of another dtype, or the key is no SampleKey.
            ValueError: The images are not [B, C, H, W], the key does not fit them, or an operation cannot take them.
        """
        return [pixels for pixels, _ in self._make_all(images, key)]

    def programs(self, images: Images, key: SampleKey) -> list[list[Program]]:
        """What was drawn: the numbers by which a call with these arguments makes its views.

        Returns:
            For each view one program, or one more for each time that a tensor operation, or a crop behind a pixel
            operation, makes it begin anew.
        """
        return [programs for _, programs in self._make_all(images, key)]

    def evaluation_view(self, images: Images) -> Tensor:
        """Unaugmented images as the encoder wants them; see ``evaluation``.

        Args:
            images: As for the views; no side shorter than the view where the middle is cut out.

        Raises:
            TypeError: The images are neither a tensor nor ragged, or of another dtype.
            ValueError: The images are not [B, C, H, W], or too small.
        """
        ragged = as_ragged(images)
        operations = self.evaluation
        if operations is None:
            operations = _evaluation_of(self.views[0], resize=isinstance(images, RaggedImages))
        names = Names(0, 0, np.zeros(len(ragged), dtype=np.int64))
        view, _ = self._make(ragged, operations, draw(names, [[0] * len(operations)])[0])
        return view

    def _make_all(self, images: Images, key: SampleKey) -> list[tuple[Tensor, list[Program]]]:
        ragged = as_ragged(images)
        names = names_of(key, len(ragged))
        drawn = draw(names, [[operation.num_words for operation in view] for view in self.views])
        return [self._make(ragged, view, numbers) for view, numbers in zip(self.views, drawn, strict=True)]

    def _make(self, images: RaggedImages, view: View, drawn: Sequence[Random]) -> tuple[Tensor, list[Program]]:
        """One view: as few programs as its operations allow, and tensor operations between them."""
        for operation in view:
            operation.check_channels(images.channels)
        if len(images) == 0:
            return torch.empty(0, images.channels, *[_side(view) or 1] * 2, dtype=self.dtype, device=images.device), []
        frame, slots = Frame(images.heights, images.widths), list[Slot]()
        normalize: Normalize | None = None
        programs = []
        for operation, random in zip(view, drawn, strict=True):
            pixels_first = slots and not isinstance(operation, RandomHorizontalFlip)  # the flip commutes with them all
            if isinstance(operation, TensorOperation) or (isinstance(operation, GeometricOperation) and pixels_first):
                programs.append(_program(frame, slots))
                pixels = self._render(images, programs[-1], None, torch.float32, torch.contiguous_format)
                if isinstance(operation, TensorOperation):
                    pixels = operation.apply(pixels, random)
                images = RaggedImages.of_one_size(pixels)
                frame, slots = Frame(images.heights, images.widths), []
            if isinstance(operation, GeometricOperation):
                operation.place(frame, random)
            elif isinstance(operation, PixelOperation):
                slots += operation.slots(random)
            elif isinstance(operation, Normalize):
                normalize = operation
        programs.append(_program(frame, slots))
        return self._render(images, programs[-1], normalize, self.dtype, self.memory_format), programs

    def _render(
        self,
        images: RaggedImages,
        program: Program,
        normalize: Normalize | None,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> Tensor:
        shape = len(images), images.channels, *program.size
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)
        choose_backend(self.backend, images, program)(images, program, normalize, out)
        return out


def _program(frame: Frame, slots: Sequence[Slot]) -> Program:
    """What has been collected, where every image's view has the same size.

    Raises:
        ValueError: The sizes differ, or a blur's kernel is too large for them.
    """
    sizes = sorted(set(zip(frame.height.tolist(), frame.width.tolist(), strict=True)))
    if len(sizes) > 1:
        raise ValueError(
            f"The views of these images would have different sizes, such as {sizes[0]} and {sizes[-1]} pixels. Begin a "
            "view of ragged images with RandomResizedCrop, or with Resize and CenterCrop."
        )
    size = sizes[0]
    for slot in slots:
        if Code.BLUR in slot.may_be and slot.radius >= min(size):
            raise ValueError(
                f"A blur kernel of {2 * slot.radius + 1} pixels does not fit {size[0]} x {size[1]} views: it must be "
                f"at most {2 * min(size) - 1}. Choose a smaller odd kernel_size, or leave GaussianBlur out."
            )
    return Program(
        size=size,
        bicubic=frame.interpolation == "bicubic",
        top=frame.top,
        left=frame.left,
        height=frame.box_height,
        width=frame.box_width,
        grid_height=frame.grid_height,
        grid_width=frame.grid_width,
        window_top=frame.window_top,
        window_left=frame.window_left,
        flip=frame.flip,
        slots=tuple(slots),
    )


def _evaluation_of(view: View, *, resize: bool) -> View:
    size = _side(view)
    if size is None:
        raise ValueError(
            "The first view does not say how much to cut from unaugmented images. Give Views an evaluation."
        )
    last = view[-1:] if isinstance(view[-1], Normalize) else ()
    return [*([Resize(round(size * 8 / 7))] if resize else []), CenterCrop(size), *last]


def _side(view: View) -> int | None:
    """The side of a view in pixels, where one of its operations names it."""
    sized = (RandomResizedCrop, CenterCrop, Resize)
    return next((operation.size for operation in reversed(view) if isinstance(operation, sized)), None)


def _check_view(view: View) -> None:
    if len(view) == 0:
        raise ValueError(
            "A view without operations is the image itself. Give at least RandomResizedCrop, or CenterCrop."
        )
    for operation in view:
        if not isinstance(operation, Operation):
            raise TypeError(
                f"A view is a list of operations of contrastive.augmentations, but holds a {type(operation).__name__}. "
                "kornia_op adapts a Kornia module; views_from a whole pipeline of somebody else's."
            )
    for operation in view[:-1]:
        if isinstance(operation, Normalize):
            raise ValueError(f"{operation} is not the last operation of its view: all others take pixels in [0, 1].")
