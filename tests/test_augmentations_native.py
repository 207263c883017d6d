"""The native backend against torchvision in float64, image by image, and against itself in other batches."""

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive.augmentations import IMAGENET, Normalize
from contrastive.augmentations.backends.native_backend import render
from contrastive.augmentations.backends.native_kernels import compiled
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.program import Code, Program, Slot
from tests.reference_augmentations import photographs, torchvision_view

PHOTOGRAPH, NOISE = 1e-5, 2e-4  # how far a view may be from torchvision's
RANGES = {
    Code.NOTHING: (0.0, 0.0),
    Code.BRIGHTNESS: (0.0, 1.8),
    Code.CONTRAST: (0.0, 1.8),
    Code.SATURATION: (0.0, 1.8),
    Code.HUE: (-0.5, 0.5),
    Code.GRAYSCALE: (0.0, 0.0),
    Code.BLUR: (0.1, 2.0),
    Code.SOLARIZE: (0.0, 0.9),
}


def noise(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def whole(images: RaggedImages, size: tuple[int, int], slots: Sequence[Slot] = (), bicubic: bool = False) -> Program:
    """Whole images resized to ``size``."""
    none = np.zeros(len(images), np.int64)
    box = (none, none, images.heights, images.widths)
    return Program(size, bicubic, *box, none + size[0], none + size[1], none, none, none == 1, tuple(slots))


def cropped(images: RaggedImages, size: tuple[int, int], slots: Sequence[Slot], bicubic: bool = False) -> Program:
    """Boxes of any size in the images, windows in larger grids, every other one mirrored."""
    random = np.random.default_rng(5)
    heights, widths = images.heights, images.widths
    height, width = random.integers(1, heights + 1), random.integers(1, widths + 1)
    window_top, window_left = random.integers(0, 9, len(images)), random.integers(0, 9, len(images))
    return Program(
        size,
        bicubic,
        top=random.integers(0, heights - height + 1),
        left=random.integers(0, widths - width + 1),
        height=height,
        width=width,
        grid_height=size[0] + window_top + random.integers(0, 5, len(images)),
        grid_width=size[1] + window_left + random.integers(0, 5, len(images)),
        window_top=window_top,
        window_left=window_left,
        flip=np.arange(len(images)) % 2 == 1,
        slots=tuple(slots),
    )


def slot_of(codes: Sequence[int], values: Sequence[float], radius: int = 0) -> Slot:
    may_be = tuple(sorted({Code(code) for code in codes} - {Code.NOTHING}))
    return Slot(np.array(codes, np.int64), np.array(values, np.float32), may_be, radius)


def random_slots(count: int, radius: int, codes: Sequence[Code] = tuple(Code), length: int = 6) -> list[Slot]:
    """Any operation in any slot, so also several blurs, contrasts of grey views, and nothing."""
    random = np.random.default_rng(7)
    drawn = random.choice(np.array(codes), (length, count))
    return [slot_of(row, [random.uniform(*RANGES[Code(code)]) for code in row], radius) for row in drawn]


def rendered(images: RaggedImages, program: Program, normalize: Normalize | None = None) -> Tensor:
    out = torch.full((len(images), images.channels, *program.size), float("nan"))
    render(images, program, normalize, out)
    return out


def assert_torchvisions(
    images: RaggedImages, program: Program, within: float = PHOTOGRAPH, normalize: Normalize | None = None
) -> None:
    scale = 255 if images.dtype == torch.uint8 else 1
    exact = [torchvision_view(images[row].double() / scale, program, row, normalize) for row in range(len(images))]
    assert (rendered(images, program, normalize) - torch.stack(exact)).abs().max() <= within


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch back the number of threads it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


KINDS = {
    "photographs": (photographs(3, 40, 50), PHOTOGRAPH),
    "noise": (noise(3, 3, 40, 50), NOISE),
    "flat": (torch.tensor([0, 200, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 9, 8), PHOTOGRAPH),
    "one pixel": (noise(3, 3, 1, 1), PHOTOGRAPH),
}


@pytest.mark.parametrize("size", [(32, 33), (224, 224)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", list(Code))
def test_every_operation_alone_is_torchvisions(code: Code, kind: str, size: tuple[int, int]) -> None:
    pixels, within = KINDS[kind]
    pixels = pixels if size == (32, 33) else pixels[:1]
    images = RaggedImages.of_one_size(pixels)
    low, high = RANGES[code]
    values = [0.3 * low + 0.7 * high, low, high]
    slot = slot_of([code] * len(pixels), values[: len(pixels)], radius=11)
    assert_torchvisions(images, whole(images, size, [slot]), within)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["photographs", "noise"])
def test_any_program_is_torchvisions(kind: str, size: tuple[int, int]) -> None:
    count, largest = (6, 300) if size == (224, 224) else (60, 90)
    sides = np.random.default_rng(1).integers(1, largest, (count, 2)).tolist()
    if kind == "photographs":
        images = RaggedImages.pack([photographs(1, *side, seed)[0] for seed, side in enumerate(sides)])
    else:
        images = RaggedImages.pack([noise(1, 3, *side, seed)[0] for seed, side in enumerate(sides)])
    slots = random_slots(count, radius=min(7, size[0] - 1))
    within = PHOTOGRAPH if kind == "photographs" else NOISE
    assert_torchvisions(images, cropped(images, size, slots, bicubic=kind == "noise"), within)


def test_normalised_views_are_torchvisions() -> None:
    images = RaggedImages.of_one_size(photographs(60, 40, 50))
    program = cropped(images, (32, 32), random_slots(60, radius=9))
    assert_torchvisions(images, program, PHOTOGRAPH / min(IMAGENET.std), IMAGENET)


@pytest.mark.parametrize("bicubic", [False, True])
def test_resizing_stays_in_range_and_is_torchvisions(bicubic: bool) -> None:
    """Cubic weights overshoot at edges from black to white, and rounded weights can sum to more than one."""
    edges = RaggedImages.pack(
        [(noise(1, 3, side, 70 - side)[0] > 127) * torch.tensor(255).byte() for side in range(1, 70)]
    )
    white = RaggedImages.of_one_size(torch.full((1, 3, 61, 67), 255, dtype=torch.uint8))
    for images in (edges, white):
        for size in ((24, 48), (90, 7)):
            program = whole(images, size, bicubic=bicubic)
            view = rendered(images, program)
            assert view.min() >= 0
            assert view.max() <= 1
            assert_torchvisions(images, program, 2e-6)


def test_box_that_keeps_its_size_is_copied_exactly() -> None:
    images = RaggedImages.of_one_size(torch.arange(256, dtype=torch.uint8).expand(2, 3, 5, 256).contiguous())
    box = {"height": np.array([4, 4]), "width": np.array([250, 250]), "left": np.array([6, 6]), "top": np.array([1, 1])}
    grid = {"grid_height": np.array([4, 4]), "grid_width": np.array([250, 250])}
    window = {"window_left": np.array([20, 0]), "window_top": np.array([1, 0])}
    for bicubic in (False, True):
        program = replace(
            whole(images, (3, 230), bicubic=bicubic), **box, **grid, **window, flip=np.array([False, True])
        )
        view = rendered(images, program)
        assert torch.equal(view[0], (torch.arange(26, 256) / 255).expand(3, 3, 230))
        assert torch.equal(view[1], (torch.arange(6, 236) / 255).flip(0).expand(3, 3, 230))


@pytest.mark.parametrize("shape", [(3, 5003), (5003, 3)], ids=str)
def test_far_ends_of_large_images_are_torchvisions(shape: tuple[int, int]) -> None:
    images = RaggedImages.of_one_size(noise(1, 3, *shape))
    for grid in (5003, 5002, 6000, 224):
        program = replace(
            whole(images, tuple(min(side, 200) for side in shape)),
            grid_height=np.array([min(shape[0], 3) if shape[0] == 3 else grid]),
            grid_width=np.array([min(shape[1], 3) if shape[1] == 3 else grid]),
            window_top=np.array([0 if shape[0] == 3 else grid - 200]),
            window_left=np.array([0 if shape[1] == 3 else grid - 200]),
        )
        assert_torchvisions(images, program, 2e-6)


def test_one_channel_is_its_own_luma() -> None:
    images = RaggedImages.of_one_size(photographs(20, 40, 50)[:, :1])
    codes = (Code.NOTHING, Code.BRIGHTNESS, Code.CONTRAST, Code.BLUR, Code.SOLARIZE)
    normalize = Normalize((0.4,), (0.5,))
    assert_torchvisions(images, cropped(images, (32, 32), random_slots(20, 9, codes)), normalize=normalize)


def test_five_channels_are_each_treated_alike() -> None:
    images = RaggedImages.of_one_size(noise(20, 5, 40, 50))
    normalize = Normalize((0.1, 0.2, 0.3, 0.4, 0.5), (1.0, 2.0, 1.5, 3.0, 2.5))
    program = cropped(images, (32, 32), random_slots(20, 9, (Code.NOTHING, Code.BLUR)))
    assert_torchvisions(images, program, normalize=normalize)


def test_float_images_are_rendered_as_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    images = RaggedImages.of_one_size(torch.rand(20, 3, 40, 50, generator=generator))
    assert_torchvisions(images, cropped(images, (32, 32), random_slots(20, 9)), NOISE)
    kept = rendered(images, whole(images, (40, 50)))
    assert torch.equal(kept.flatten(), images.pixels)


def test_images_beyond_four_gigabytes_are_found(tmp_path: Path) -> None:
    start = 2**32 + 2**31
    pixels = torch.from_file(str(tmp_path / "sparse"), shared=True, size=start + 3072, dtype=torch.uint8)
    pixels[start:] = noise(1, 3, 32, 32).flatten()
    side = np.array([32])
    images = RaggedImages(pixels, np.array([start]), side, side)
    assert torch.equal(rendered(images, whole(images, (32, 32))), noise(1, 3, 32, 32) / 255)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "normalize",
    [None, IMAGENET, Normalize((0.2, 0.4, 100 / 255), (3e3, 1e-5, 20.0)), Normalize((0.0,) * 3, (5e4, 700.0, 1.0))],
    ids=["none", "ImageNet", "out of float16's range", "below float16's normal numbers"],
)
def test_other_formats_are_float32_rounded_as_torch_does(
    normalize: Normalize | None, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    images = RaggedImages.of_one_size(noise(20, 3, 40, 50))
    program = cropped(images, (31, 33), random_slots(20, 9))
    out = torch.full((20, 3, 31, 33), float("nan"), dtype=dtype).contiguous(memory_format=memory_format)
    render(images, program, normalize, out)
    assert torch.equal(out, rendered(images, program, normalize).to(dtype))
    assert out.is_contiguous(memory_format=memory_format)


def test_every_tie_is_rounded_to_even_as_torch_does() -> None:
    """All float32 numbers in [0, 1] that lie halfway between two halves, and their neighbours."""
    halves = torch.arange(0x3C00, dtype=torch.int16).view(torch.float16).float()
    bfloats = torch.arange(0x3F80, dtype=torch.int16).view(torch.bfloat16).float()
    for dtype, numbers in ((torch.float16, halves), (torch.bfloat16, bfloats)):
        between = (numbers[1:] + numbers[:-1]) / 2
        ends = torch.tensor(0.0), torch.tensor(1.0)
        values = torch.cat([numbers, between, between.nextafter(ends[0]), between.nextafter(ends[1])])
        images = RaggedImages.of_one_size(values[None, None, None])
        out = torch.empty(1, 1, 1, len(values), dtype=dtype)
        render(images, whole(images, (1, len(values))), None, out)
        assert torch.equal(out.flatten(), values.to(dtype))


def only(program: Program, rows: Sequence[int]) -> Program:
    """The same program for some of its images."""
    arrays = {field.name: getattr(program, field.name) for field in fields(program)}
    kept = {name: value[list(rows)] for name, value in arrays.items() if isinstance(value, np.ndarray)}
    slots = [replace(slot, codes=slot.codes[list(rows)], values=slot.values[list(rows)]) for slot in program.slots]
    return replace(program, **kept, slots=tuple(slots))


@pytest.mark.usefixtures("threads")
def test_view_is_the_same_bit_for_bit_in_any_batch_and_on_any_number_of_threads() -> None:
    pixels = noise(301, 3, 40, 50)
    images = RaggedImages.of_one_size(pixels)
    program = cropped(images, (32, 32), random_slots(301, 9))
    torch.set_num_threads(1)
    views = rendered(images, program, IMAGENET)
    for rows in ([17], [300, 17, 2], list(reversed(range(301)))):
        again = rendered(RaggedImages.of_one_size(pixels[rows]), only(program, rows), IMAGENET)
        assert torch.equal(again, views[rows])
    for number in (2, 3):
        torch.set_num_threads(number)
        assert torch.equal(rendered(images, program, IMAGENET), views)
        names = [thread.name for thread in threading.enumerate()]
        assert any(name.startswith("augmentations") for name in names)


def send_views(images: RaggedImages, program: Program, out: Tensor, results: Connection) -> None:
    render(images, program, None, out)  # and nothing else: torch's own threads do not survive a fork
    results.send_bytes(out.numpy().tobytes())


@pytest.mark.usefixtures("threads")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_process_renders_on_threads_of_its_own() -> None:
    images = RaggedImages.of_one_size(noise(200, 3, 40, 50))
    program = cropped(images, (32, 32), random_slots(200, 9))
    torch.set_num_threads(2)
    views = rendered(images, program)  # the parent's threads exist from here
    results, there = multiprocessing.Pipe(duplex=False)
    out = torch.zeros_like(views)
    child = multiprocessing.get_context("fork").Process(target=send_views, args=(images, program, out, there))
    child.start()
    answered = results.poll(timeout=20)
    if not answered:
        child.kill()
    assert answered, "the child waits for threads that only its parent has"
    assert results.recv_bytes() == views.numpy().tobytes()
    child.join()
    assert torch.equal(rendered(images, program), views)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_images_in_memory_that_only_can_be_read_are_rendered(tmp_path: Path) -> None:
    pixels = noise(20, 3, 40, 50)
    pixels.numpy().tofile(tmp_path / "pixels")
    mapped = torch.from_numpy(np.memmap(tmp_path / "pixels", mode="r"))  # writing here ends the process
    images = replace(RaggedImages.of_one_size(pixels), pixels=mapped)
    assert_torchvisions(images, cropped(images, (32, 32), random_slots(20, 9)), NOISE)


def test_empty_batch_has_no_views() -> None:
    images = RaggedImages.of_one_size(noise(0, 3, 8, 8))
    assert rendered(images, whole(images, (32, 32))).shape == (0, 3, 32, 32)


def test_compiler_is_imported_with_the_first_view_only() -> None:
    check = "import sys, contrastive; assert not {'numba', 'llvmlite'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_machine_code_that_cannot_be_kept_is_made_anew_with_advice() -> None:
    nowhere: dict[str, object] = {}
    exec("def double(number): return 2 * number", nowhere)  # not in a file, so that Numba finds no folder for it
    with pytest.warns(
        UserWarning, match="compiled anew in every process, for neither.* Set NUMBA_CACHE_DIR to a folder"
    ):
        double = compiled(keep=True)(nowhere["double"])
    assert double(21) == 42
