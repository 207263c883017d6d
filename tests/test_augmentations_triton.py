from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from contrastive.augmentations import IMAGENET, Normalize
from contrastive.augmentations.backends import triton_backend
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.philox import philox4x32
from contrastive.augmentations.program import Code, Program, Slot
from tests.compile_offline import compiled
from tests.reference_augmentations import photographs, torchvision_view

SMALL, LARGE = (20, 13), (65, 20)  # one program of a kernel for each view; three
PHOTOGRAPH, NOISE = 1e-5, 2e-4  # how far a view may be from torchvision's
JITTER = (Code.BRIGHTNESS, Code.CONTRAST, Code.SATURATION, Code.HUE)
RANGES = {
    Code.NOTHING: (0.0, 0.0),
    Code.BRIGHTNESS: (0.3, 1.8),
    Code.CONTRAST: (0.2, 1.8),
    Code.SATURATION: (0.0, 1.8),
    Code.HUE: (-0.5, 0.5),
    Code.GRAYSCALE: (0.0, 0.0),
    Code.BLUR: (0.1, 2.0),
    Code.SOLARIZE: (0.1, 0.9),
}


@pytest.fixture(scope="module")
def device() -> str:
    """A GPU where there is one; else the kernels are interpreted (see conftest)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def slot(codes: Sequence[Code], values: Sequence[float], *may_be: Code, radius: int = 0) -> Slot:
    may_be = may_be or tuple(sorted({*codes} - {Code.NOTHING}))
    return Slot(np.array(codes, dtype=np.int64), np.array(values, dtype=np.float32), may_be, radius)


def random_slot(rng: np.random.Generator, count: int, *codes: Code, radius: int = 0) -> Slot:
    """Most images have one of the codes."""
    drawn = [Code(code) for code in rng.choice([Code.NOTHING, *codes, *codes], count)]
    return slot(drawn, [rng.uniform(*RANGES[code]) for code in drawn], *codes, radius=radius)


def random_slots(rng: np.random.Generator, count: int, radius: int) -> list[Slot]:
    """As in the published views: jitter in any order, grayscale, blur, solarize."""
    orders = rng.permuted(np.tile(JITTER, (count, 1)), axis=1)
    jitter = [
        slot([Code(c) for c in codes], [rng.uniform(*RANGES[Code(c)]) for c in codes], *JITTER) for codes in orders.T
    ]
    grayscale = random_slot(rng, count, Code.GRAYSCALE)
    blur = random_slot(rng, count, Code.BLUR, radius=radius)
    return [*jitter, grayscale, blur, random_slot(rng, count, Code.SOLARIZE)]


def whole(images: RaggedImages, size: tuple[int, int], *slots: Slot, bicubic: bool = False) -> Program:
    """The images resized from edge to edge."""
    zero = np.zeros(len(images), dtype=np.int64)
    box = {"top": zero, "left": zero, "height": images.heights, "width": images.widths}
    grid = {"grid_height": zero + size[0], "grid_width": zero + size[1], "window_top": zero, "window_left": zero}
    return Program(size, bicubic, **box, **grid, flip=zero > 0, slots=slots)


def random_crops(rng: np.random.Generator, images: RaggedImages, program: Program) -> Program:
    """Any boxes, windows and flips, as crops of crops and flips make them."""
    height, width = rng.integers(1, images.heights + 1), rng.integers(1, images.widths + 1)
    window_top, window_left = rng.integers(0, 4, len(images)), rng.integers(0, 4, len(images))
    return replace(
        program,
        top=rng.integers(0, images.heights - height + 1),
        left=rng.integers(0, images.widths - width + 1),
        height=height,
        width=width,
        grid_height=program.size[0] + 2 * window_top,
        grid_width=program.size[1] + window_left,
        window_top=window_top,
        window_left=window_left,
        flip=rng.random(len(images)) < 0.5,
    )


def rendered(
    images: RaggedImages, program: Program, device: str, normalize: Normalize | None = None, **out: Any
) -> Tensor:
    there = images.to(device)
    assert triton_backend.why_not(there, program) is None
    view = torch.full((len(images), 3, *program.size), float("nan"), device=device).to(**out)
    triton_backend.render(there, program, normalize, view)
    return view.cpu()


def expected(images: RaggedImages, program: Program, normalize: Normalize | None = None) -> Tensor:
    """Torchvision in float64, so that what differs is ours."""
    scale = 255 if images.dtype == torch.uint8 else 1
    rows = range(len(images))
    return torch.stack([torchvision_view(images[row].double() / scale, program, row, normalize) for row in rows])


def assert_equal_to_torchvision(
    images: RaggedImages, program: Program, device: str, normalize: Normalize | None = None, atol: float = PHOTOGRAPH
) -> None:
    views = rendered(images, program, device, normalize)
    torch.testing.assert_close(views.double(), expected(images, program, normalize), atol=atol, rtol=0)


def some_photographs(*sizes: tuple[int, int]) -> RaggedImages:
    return RaggedImages.pack([photographs(1, *size, seed=number)[0] for number, size in enumerate(sizes)])


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("code", list(Code))
def test_each_operation_alone_is_torchvisions(code: Code, size: tuple[int, int], device: str) -> None:
    images = RaggedImages.of_one_size(photographs(3, 17, 24))
    low, high = RANGES[code]
    only = slot([code, Code.NOTHING, code], [low, 0.7, high], code, radius=3)
    assert_equal_to_torchvision(images, whole(images, size, only), device)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 32), (33, 64)])
def test_small_views_of_any_shape_are_torchvisions(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(0)
    images = some_photographs((40, 31), (9, 60), (24, 24))
    program = whole(images, size, *random_slots(rng, 3, radius=min(3, *(side - 1 for side in size))))
    assert_equal_to_torchvision(images, random_crops(rng, images, program), device, IMAGENET)


@pytest.mark.parametrize("size", [(65, 34), (8, 97)])
def test_large_views_of_any_shape_are_torchvisions(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(1)
    images = some_photographs((70, 50), (20, 90))
    program = whole(images, size, *random_slots(rng, 2, radius=7))
    assert_equal_to_torchvision(images, random_crops(rng, images, program), device, IMAGENET)


@pytest.mark.parametrize(("size", "bicubic"), [(SMALL, False), (SMALL, True), (LARGE, False)])
def test_noise_and_its_extremes_survive_every_operation(size: tuple[int, int], bicubic: bool, device: str) -> None:
    rng = np.random.default_rng(2)
    noise = torch.from_numpy(rng.integers(0, 256, (2, 3, 30, 41), dtype=np.uint8))
    noise[1] = noise[1] // 128 * 255
    images = RaggedImages.of_one_size(noise)
    program = whole(images, size, *random_slots(rng, 2, radius=4), bicubic=bicubic)
    assert_equal_to_torchvision(images, random_crops(rng, images, program), device, atol=NOISE)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_flat_and_tiny_images_have_views(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(3)
    flat = torch.full((3, 2, 20), 255, dtype=torch.uint8)
    images = RaggedImages.pack([flat, flat // 255, *photographs(1, 1, 1), *photographs(1, 1, 30)])
    program = whole(images, size, *random_slots(rng, 4, radius=3))
    assert_equal_to_torchvision(images, random_crops(rng, images, program), device)


def test_black_and_white_stay_what_they_are(device: str) -> None:
    images = RaggedImages.of_one_size(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 3, 6, 9))
    views = rendered(images, whole(images, (4, 5)), device)
    assert views[0].eq(0).all()
    torch.testing.assert_close(views[1], torch.ones(3, 4, 5), atol=5e-7, rtol=0)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_bicubic_views_are_torchvisions(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(4)
    images = some_photographs((40, 51), (9, 60))
    assert_equal_to_torchvision(images, random_crops(rng, images, whole(images, size, bicubic=True)), device)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_box_that_keeps_its_size_is_copied_exactly(
    dtype: torch.dtype, size: tuple[int, int], bicubic: bool, device: str
) -> None:
    bytes_ = torch.arange(2 * 3 * 70 * 31).mul(37).remainder(256).to(torch.uint8).view(2, 3, 70, 31)
    pixels = bytes_ if dtype == torch.uint8 else (bytes_ + 0.3) / 256
    images = RaggedImages.of_one_size(pixels)
    top, left = np.array([0, 5]), np.array([11, 7])
    program = whole(images, size, bicubic=bicubic)
    program = replace(program, grid_height=images.heights, grid_width=images.widths, window_top=top, window_left=left)
    views = rendered(images, replace(program, flip=np.array([False, True])), device)
    values = pixels / 255 if dtype == torch.uint8 else pixels
    assert torch.equal(views[0], values[0, :, : size[0], 11 : 11 + size[1]])
    assert torch.equal(views[1], values[1, :, 5 : 5 + size[0], 7 : 7 + size[1]].flip(-1))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_float_images_are_taken_as_they_are(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(5)
    images = RaggedImages.of_one_size(photographs(2, 33, 21).float() / 255)
    program = whole(images, size, *random_slots(rng, 2, radius=2))
    assert_equal_to_torchvision(images, random_crops(rng, images, program), device)


def test_pixels_far_from_a_long_boxs_corner_are_as_accurate_as_near_it(device: str) -> None:
    """In float32 a centre near 29,000 can be 1/1000 of a pixel off."""
    rng = np.random.default_rng(6)
    noise = torch.from_numpy(rng.integers(0, 256, (3, 2, 30_000), dtype=np.uint8))
    images = RaggedImages.pack([noise])
    program = whole(images, (2, 7))
    program = replace(program, grid_width=np.array([29_017]), window_left=np.array([29_000]))
    assert_equal_to_torchvision(images, program, device, atol=PHOTOGRAPH)


def test_boxes_of_thousands_of_pixels_shrink_accurately(device: str) -> None:
    images = some_photographs((1, 1200))
    assert_equal_to_torchvision(images, whole(images, (1, 16)), device)


def test_solarize_turns_pixels_that_are_exactly_at_the_threshold(device: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    images = RaggedImages.of_one_size(levels)
    threshold = np.float32(100) / np.float32(255)
    views = rendered(images, whole(images, (16, 16), slot([Code.SOLARIZE], [threshold])), device)
    scaled = levels / 255
    assert torch.equal(views, torch.where(levels >= 100, 1 - scaled, scaled))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_image_may_have_several_contrasts(size: tuple[int, int], device: str) -> None:
    images = RaggedImages.of_one_size(photographs(2, 20, 20))
    slots = [
        slot([Code.CONTRAST, Code.BRIGHTNESS], [1.7, 0.5]),
        slot([Code.HUE, Code.CONTRAST], [0.2, 1.9]),
        slot([Code.CONTRAST, Code.CONTRAST], [0.4, 0.7]),
    ]
    assert_equal_to_torchvision(images, whole(images, size, *slots), device)


def test_a_contrast_sees_all_of_a_wide_view(device: str) -> None:
    images = RaggedImages.of_one_size(photographs(1, 2, 40))
    assert_equal_to_torchvision(images, whole(images, (1, 1030), slot([Code.CONTRAST], [0.3])), device)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_another_operation_may_share_the_blurs_slot(size: tuple[int, int], device: str) -> None:
    images = RaggedImages.of_one_size(photographs(3, 20, 20))
    either = slot([Code.BLUR, Code.SOLARIZE, Code.NOTHING], [1.0, 0.41, 0.0], radius=2)
    assert_equal_to_torchvision(images, whole(images, size, either), device)


def test_small_views_take_any_order(device: str) -> None:
    images = RaggedImages.of_one_size(photographs(2, 20, 20))
    slots = [
        slot([Code.BLUR, Code.SOLARIZE], [0.7, 0.41], radius=2),
        slot([Code.CONTRAST, Code.BLUR], [1.6, 1.2], radius=9),
        slot([Code.BLUR, Code.CONTRAST], [2.0, 0.4], radius=1),
    ]
    assert_equal_to_torchvision(images, whole(images, (15, 10), *slots), device)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_only_rounds_the_result(dtype: torch.dtype, size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(7)
    images = RaggedImages.of_one_size(photographs(2, 20, 20))
    program = whole(images, size, *random_slots(rng, 2, radius=2))
    views = rendered(images, program, device, IMAGENET, dtype=dtype)
    assert views.dtype == dtype
    exact = rendered(images, program, device, IMAGENET)
    steps = 0.5 if device == "cuda" else 1.0  # the interpreter cuts bfloat16 off instead of rounding
    torch.testing.assert_close(views.float(), exact, atol=2**-24, rtol=steps * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_memory_format_changes_nothing_else(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(8)
    images = RaggedImages.of_one_size(photographs(2, 20, 20))
    program = whole(images, size, *random_slots(rng, 2, radius=2))
    channels_last = rendered(images, program, device, memory_format=torch.channels_last)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(channels_last, rendered(images, program, device))


def test_nothing_is_written_beside_the_views(device: str) -> None:
    images = RaggedImages.of_one_size(photographs(2, 20, 20)).to(device)
    for size in (SMALL, LARGE):
        buffer = torch.full((4, 5, size[0] + 2, size[1] + 2), 7.0, device=device)
        blur = slot([Code.BLUR, Code.NOTHING], [1.0, 0.0], radius=2)
        triton_backend.render(images, whole(images, size, blur), None, buffer[1:3, 1:4, 1:-1, 1:-1])
        inside = torch.zeros_like(buffer, dtype=torch.bool)
        inside[1:3, 1:4, 1:-1, 1:-1] = True
        assert buffer[~inside].eq(7).all()
        assert buffer[inside].lt(2).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_view_does_not_depend_on_its_neighbours(size: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(9)
    parts = [photographs(1, *sides, seed=number)[0] for number, sides in enumerate([(20, 31), (9, 9), (40, 12)])]
    images = RaggedImages.pack(parts)
    program = random_crops(rng, images, whole(images, size, *random_slots(rng, 3, radius=2)))
    together = rendered(images, program, device, IMAGENET)

    def chosen(rows: list[int]) -> Tensor:
        def cut(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else values

        slots = tuple(replace(one, codes=cut(one.codes), values=cut(one.values)) for one in program.slots)
        few = Program(**{**{name: cut(values) for name, values in vars(program).items()}, "slots": slots})
        return rendered(RaggedImages.pack([parts[row] for row in rows]), few, device, IMAGENET)

    assert torch.equal(chosen([2, 0, 1]), together[[2, 0, 1]])
    for row in range(3):
        assert torch.equal(chosen([row])[0], together[row])


def test_an_empty_batch_has_no_views(device: str) -> None:
    images = RaggedImages(torch.zeros(0, dtype=torch.uint8), *[np.zeros(0, dtype=np.int64)] * 3)
    assert rendered(images, whole(images, SMALL), device).shape == (0, 3, *SMALL)


def test_images_beyond_two_gibibytes_are_found(device: str) -> None:
    before = 2**32 + 2**31 + 5  # both words of an offset matter, and the lower one looks negative
    image = photographs(1, 6, 7)
    pixels = torch.empty(before + image.numel(), dtype=torch.uint8, device=device)  # on the host never touched
    pixels[before:] = image.flatten()
    far = RaggedImages(pixels, np.array([before]), np.array([6]), np.array([7]))
    near = RaggedImages.of_one_size(image)
    assert torch.equal(rendered(far, whole(far, SMALL), device), rendered(near, whole(near, SMALL), device))


def test_what_is_not_drawn_is_not_computed() -> None:
    images = RaggedImages.of_one_size(photographs(4, 8, 8))

    def programs_of_kernels(size: tuple[int, int], contrast: list[Code], blur: list[Code]) -> dict[str, int]:
        slots = slot(contrast, [0.5] * 4, Code.CONTRAST), slot(blur, [1.0] * 4, Code.BLUR, radius=1)
        launches = triton_backend.prepare(images, whole(images, size, *slots), None, torch.empty(4, 3, *size))
        return {launch.kernel.__name__: launch.num_programs for launch in launches}

    some, none = [Code.NOTHING, Code.NOTHING, Code.CONTRAST, Code.NOTHING], [Code.NOTHING] * 4
    blur = [Code.BLUR, Code.NOTHING, Code.BLUR, Code.NOTHING]
    assert programs_of_kernels(SMALL, some, blur) == {"render_small": 4}
    assert programs_of_kernels(LARGE, none, none) == {"render_tile": 4 * 3}
    assert programs_of_kernels(LARGE, some, blur) == {
        "sum_luma": 3,
        "render_tile": 4 * 3,
        "blur_rows": 2 * 3,
        "blur_columns": 2 * 3,
    }


def test_what_the_kernels_cannot_do_is_said() -> None:
    def reason(size: tuple[int, int], *slots: Slot, channels: int = 3, sides: tuple[int, int] = (8, 8)) -> str | None:
        pixels = torch.empty(channels * sides[0] * sides[1], dtype=torch.uint8, device="meta")
        images = RaggedImages(pixels, np.array([0]), np.array([sides[0]]), np.array([sides[1]]), channels)
        return triton_backend.why_not(images, whole(images, size, *slots))

    blur, contrast = slot([Code.BLUR], [1.0], radius=1), slot([Code.CONTRAST], [0.5])
    assert reason(SMALL, contrast, blur, contrast, blur) is None
    assert reason(LARGE, contrast, contrast, blur) is None
    assert reason(SMALL, channels=1) == "the Triton kernels take RGB images, not 1 channel"
    assert reason(SMALL, channels=4) == "the Triton kernels take RGB images, not 4 channels"
    assert reason(LARGE, blur, blur) == "beyond 64 pixels the Triton kernels blur once, not 2 times"
    late = "beyond 64 pixels the Triton kernels adjust contrast before the blur, not after it"
    assert reason(LARGE, blur, replace(contrast, codes=np.array([Code.NOTHING]))) == late
    large = "the Triton kernels count pixels in 32 bits, and an image, or a view times a box, has more"
    assert reason(SMALL, sides=(2**16, 2**16)) == large
    assert reason(SMALL, sides=(1, 2**31 // 26 + 1)) == large
    assert reason(SMALL, sides=(1, 2**31 // 26)) is None


class GpuThatIsNotThere(TorchDispatchMode):
    """Runs what is on the host, pretends what is on a GPU, and keeps a record of what would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads = 0
        self._pinned: list[Tensor] = []
        self._pretended = FakeTensorMode()

    def __enter__(self) -> "GpuThatIsNotThere":
        self._pretended.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._pretended.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        options = options or {}
        name = operation.overloadpacket.__name__
        of_gpu = [isinstance(value, FakeTensor) for value in inputs]
        to = options.get("device")
        if not any(of_gpu) and (to is None or to.type == "cpu"):
            with unset_fake_temporarily():
                return self._pin(name, inputs[0]) if "pin" in name else operation(*inputs, **options)
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select"):
            self.waits.append(name)
        if name in ("_to_copy", "copy_") and not of_gpu[-1]:
            self.uploads += 1
            if not options.get("non_blocking") or not self._is_pinned(inputs[-1]):
                self.waits.append(f"{name} to a GPU")
        if any(of_gpu) and to is not None and to.type == "cpu":
            self.waits.append(f"{name} to the host")
        known = [value if is_fake else self._known(value) for value, is_fake in zip(inputs, of_gpu, strict=True)]
        return operation(*known, **options)

    def _known(self, value: Any) -> Any:
        return self._pretended.from_tensor(value) if isinstance(value, Tensor) else value

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is pinned for pinned in self._pinned)

    def _pin(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return self._is_pinned(tensor)
        self._pinned.append(tensor.clone())
        return self._pinned[-1]


@pytest.mark.parametrize(("size", "num_launches"), [(SMALL, 1), (LARGE, 4)])
def test_the_host_sends_one_table_and_waits_for_nothing(size: tuple[int, int], num_launches: int) -> None:
    host = RaggedImages.of_one_size(photographs(3, 8, 8))
    contrast = slot([Code.CONTRAST, Code.NOTHING, Code.CONTRAST], [0.5] * 3)
    blur = slot([Code.BLUR, Code.BLUR, Code.NOTHING], [1.0] * 3, radius=1)
    with GpuThatIsNotThere() as gpu:
        pixels = torch.empty(host.pixels.shape, dtype=torch.uint8, device="cuda:1")
        out = torch.empty(3, 3, *size, device="cuda:1")
        images = RaggedImages(pixels, host.offsets, host.heights, host.widths)
        program = whole(images, size, contrast, blur)
        assert triton_backend.why_not(images, program) is None
        launches = triton_backend.prepare(images, program, IMAGENET, out)
    assert len(launches) == num_launches
    assert gpu.waits == []
    assert gpu.uploads == 1
    tensors = [value for launch in launches for value in launch.arguments.values() if isinstance(value, Tensor)]
    assert {tensor.device for tensor in tensors} == {torch.device("cuda:1")}


def test_a_wait_would_be_noticed() -> None:
    with GpuThatIsNotThere() as gpu:
        ones = torch.ones(3).to("cuda")
        torch.ones(3).to("cuda", non_blocking=True)
        torch.ones(3).pin_memory().to("cuda")
        ones.to("cpu")
    assert len(gpu.waits) == 4
    with GpuThatIsNotThere() as gpu:
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert gpu.waits == []


@triton.jit
def philox_kernel(words, key, counters, count: tl.constexpr):
    place = counters + tl.arange(0, count)
    counter0, counter1 = tl.load(place), tl.load(place + count)
    counter2, counter3 = tl.load(place + 2 * count), tl.load(place + 3 * count)
    drawn = tl.philox(tl.load(key), counter0, counter1, counter2, counter3, n_rounds=10)
    for word in tl.static_range(4):
        tl.store(words + word * count + tl.arange(0, count), drawn[word].to(tl.int32, bitcast=True))


def test_tritons_philox_is_ours(device: str) -> None:
    count, key = 64, 0xDEADBEEF12345678
    counters = np.random.default_rng(0).integers(0, 2**32, (4, count), dtype=np.uint32)
    words = torch.empty(4, count, dtype=torch.int32, device=device)
    there = torch.from_numpy(counters.view(np.int32)).to(device)
    keys = torch.from_numpy(np.array([key], dtype=np.uint64).view(np.int64)).to(device)
    philox_kernel[(1,)](words, keys, there, count=count)
    ours = philox4x32(key, (counters[0], counters[1], counters[2], counters[3]))
    np.testing.assert_array_equal(words.cpu().numpy().view(np.uint32), np.stack(ours))


def assert_in_registers(kernels: list[dict[str, Any]]) -> None:
    assert [kernel for kernel in kernels if kernel["stack"] or kernel["local"]] == []
    assert not any(kernel["fused"] for kernel in kernels)
    assert all(kernel["registers"] * kernel["warps"] * 32 <= 2**16 for kernel in kernels)
    assert all(kernel["shared"] <= 2**14 for kernel in kernels)


def test_kernels_compile_for_three_generations_of_gpus_without_spilling_registers(tmp_path: Path) -> None:
    kernels = compiled(
        "compile_triton", tmp_path, "80,90,100", "bfloat16", "simclr_32", "simclr_64", "simclr_224", "mae_224"
    )
    names = {"render_small", "sum_luma", "render_tile", "blur_rows", "blur_columns"}
    assert {(kernel["kernel"], kernel["architecture"]) for kernel in kernels} == {
        (name, architecture) for name in names for architecture in (80, 90, 100)
    }
    assert_in_registers(kernels)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("dtype", "views"),
    [
        ("bfloat16", []),
        *[(dtype, ["simclr_32", "simclr_64", "simclr_96", "simclr_224"]) for dtype in ("float16", "float32")],
    ],
)
def test_kernels_of_published_views_compile_without_spilling_registers(
    dtype: str, views: list[str], tmp_path: Path
) -> None:
    """All of them in bfloat16. Run tests.compile_triton without names for all in every dtype on every architecture."""
    assert_in_registers(compiled("compile_triton", tmp_path, "90", dtype, *views))
