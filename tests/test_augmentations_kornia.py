"""Kornia's augmentations as operations of a view: each image as Kornia changes it alone, whatever else is there."""

import copy
import inspect
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kornia.augmentation as kornia_augmentation
import numpy as np
import pytest
import torch
from kornia import enhance
from kornia.augmentation import auto
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contrastive.augmentations import IMAGENET, CenterCrop, RandomResizedCrop, SampleKey, Views, kornia_op
from contrastive.augmentations.key import names_of
from contrastive.augmentations.randomness import Random, draw
from tests.reference_augmentations import photographs

IMAGES = photographs(5, 48, 40) / 255
ARGUMENTS: dict[str, dict[str, Any]] = {  # of the classes that cannot do without, or do nothing by default
    "CenterCrop": {"size": 32},
    "ColorJiggle": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "LongestMaxSize": {"max_size": 32},
    "PadTo": {"size": (52, 52)},
    "RandomAffine": {"degrees": 30.0, "translate": (0.1, 0.1), "scale": (0.8, 1.2), "shear": 10.0},
    "RandomBrightness": {"brightness": (0.5, 1.5)},
    "RandomContrast": {"contrast": (0.5, 1.5)},
    "RandomCrop": {"size": (32, 32)},
    "RandomFisheye": {
        "center_x": torch.tensor([-0.3, 0.3]),
        "center_y": torch.tensor([-0.3, 0.3]),
        "gamma": torch.tensor([0.9, 1.0]),
    },
    "RandomGamma": {"gamma": (0.5, 2.0)},
    "RandomGaussianBlur": {"kernel_size": (5, 5), "sigma": (0.1, 2.0)},
    "RandomHue": {"hue": (-0.3, 0.3)},
    "RandomMotionBlur": {"kernel_size": (3, 9), "angle": 35.0, "direction": 0.5},
    "RandomRain": {"number_of_drops": (10, 200)},
    "RandomResizedCrop": {"size": (32, 32)},
    "RandomRotation": {"degrees": 30.0},
    "RandomRotation90": {"times": (1, 3)},
    "RandomSaturation": {"saturation": (0.5, 1.5)},
    "RandomShear": {"shear": (-20.0, 20.0)},
    "RandomTranslate": {"translate_x": (-0.2, 0.2), "translate_y": (-0.2, 0.2)},
    "Resize": {"size": (32, 32)},
    "SmallestMaxSize": {"max_size": 32},
}
REFUSED = {"Normalize", "Denormalize"}
NOT_TRIED = {"RandomDissolving"}  # downloads a network
NAMES = [
    name
    for name in kornia_augmentation.__all__
    if inspect.isclass(made := getattr(kornia_augmentation, name))
    and issubclass(made, kornia_augmentation.AugmentationBase2D)
    and "Base" not in name
    and name not in REFUSED | NOT_TRIED
]
SEVERAL: dict[str, Callable[[], nn.Module]] = {
    "a sequence in random order": lambda: kornia_augmentation.AugmentationSequential(
        *(make(name) for name in ("ColorJitter", "RandomPerspective", "RandomInvert")), random_apply=2
    ),
    "patches": lambda: kornia_augmentation.PatchSequential(
        *(make("RandomPosterize", p=0.5) for _ in range(4)), grid_size=(2, 2)
    ),
    "RandAugment": lambda: auto.RandAugment(2, 10),
    "AutoAugment": lambda: auto.AutoAugment(),
    "TrivialAugment": lambda: auto.TrivialAugment(),
    "jigsaw": lambda: kornia_augmentation.RandomJigsaw(grid=(2, 2), p=0.5),
}


def make(name: str, **other: Any) -> nn.Module:
    made = getattr(kornia_augmentation, name)
    p = {"p": 1.0} if "p" in inspect.signature(made).parameters else {}
    return made(**{**ARGUMENTS.get(name, {}), **p, **other})


def numbers(index: Sequence[int] = range(len(IMAGES)), epoch: int = 0) -> Random:
    key = SampleKey(7, epoch, torch.tensor(index, dtype=torch.int64))
    return draw(names_of(key, len(index)), [[1]])[0][0]


def states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def by_kornia_alone(module: nn.Module, images: Tensor, random: Random) -> list[Tensor]:
    """Each image by itself, with the global generator seeded for it."""
    changed = []
    for image, word in zip(images, random.uniform[0], strict=True):
        torch.manual_seed(int(word * 2**32))
        changed.append(module(image[None].clone())[0].detach().clamp(0, 1))
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_every_augmentation_changes_each_image_as_kornia_alone_does(name: str) -> None:
    changed = kornia_op(make(name)).apply(IMAGES.clone(), numbers())
    expected = torch.stack(by_kornia_alone(make(name), IMAGES, numbers()))
    assert torch.equal(changed, expected)
    assert changed.dtype == torch.float32
    assert not torch.equal(changed, IMAGES)


@pytest.mark.parametrize("name", SEVERAL)
def test_containers_and_policies_change_each_image_as_kornia_alone_does(name: str) -> None:
    changed = kornia_op(SEVERAL[name]()).apply(IMAGES.clone(), numbers())
    assert torch.equal(changed, torch.stack(by_kornia_alone(SEVERAL[name](), IMAGES, numbers())))
    assert not torch.equal(changed, IMAGES)


@pytest.mark.parametrize("name", [*NAMES, *SEVERAL])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    operation = kornia_op(SEVERAL[name]() if name in SEVERAL else make(name))
    together = operation.apply(IMAGES.clone(), numbers())
    order = [3, 0]
    assert torch.equal(operation.apply(IMAGES[order], numbers(order)), together[order])


def test_views_with_kornia_are_a_function_of_the_key() -> None:
    operations = [
        RandomResizedCrop(24),
        kornia_op(make("RandomElasticTransform", p=0.5)),
        kornia_op(make("RandomGaussianNoise", std=0.1)),
        IMAGENET,
    ]
    make_views = Views([operations] * 2, backend="torch")
    first, second = make_views(IMAGES, SampleKey(0, 0, torch.arange(5)))
    assert first.shape == (5, 3, 24, 24)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    order = torch.tensor([4, 1, 2])
    again = make_views(IMAGES[order], SampleKey(0, 0, order))
    assert torch.equal(again[0], first[order])
    assert torch.equal(again[1], second[order])
    for key in (SampleKey(1, 0, torch.arange(5)), SampleKey(0, 1, torch.arange(5))):
        assert not torch.equal(make_views(IMAGES, key)[0], first)


def test_equal_operations_of_a_view_draw_different_numbers() -> None:
    noise = kornia_op(make("RandomGaussianNoise", std=0.1))
    grey, first = torch.full((1, 3, 8, 8), 0.5), SampleKey(0, 0, torch.tensor([0]))
    once, twice = (
        Views([[CenterCrop(8), *[noise] * count]], backend="torch")(grey, first)[0] - 0.5 for count in (1, 2)
    )
    assert (twice - 2 * once).abs().max() > 0.1


def test_probability_is_each_images_own_and_the_others_stay_as_they_are() -> None:
    images = torch.rand(400, 3, 4, 4)
    changed = kornia_op(make("RandomInvert", p=0.3)).apply(images.clone(), numbers(range(400)))
    stayed = (changed == images).flatten(1).all(dim=1)
    assert torch.equal(changed[~stayed], 1 - images[~stayed])
    assert 0.2 < 1 - stayed.float().mean() < 0.4


def test_noise_is_cut_off_at_black_and_white() -> None:
    changed = kornia_op(make("RandomGaussianNoise", std=3.0)).apply(IMAGES.clone(), numbers())
    assert changed.min() == 0
    assert changed.max() == 1


@pytest.mark.usefixtures("without_type_checks")  # they draw from Python's generator
def test_global_random_state_is_left_as_found() -> None:
    operations = [kornia_op(build()) for build in (*SEVERAL.values(), lambda: make("RandomPlasmaShadow"))]
    failing = kornia_op(_Returns(lambda image: image[torch.randint(99, (1,)) + 1]))
    images, words, before = IMAGES.clone(), numbers(), states()
    for operation in operations:
        operation.apply(images.clone(), words)
    with pytest.raises(IndexError):
        failing.apply(images, words)
    assert states() == before


def test_autocast_changes_nothing() -> None:
    operation = kornia_op(kornia_augmentation.RandomGaussianBlur((5, 5), (1.0, 2.0), p=1.0))
    plain = operation.apply(IMAGES.clone(), numbers())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operation.apply(IMAGES.clone(), numbers()), plain)


def test_the_module_is_copied_and_never_changes() -> None:
    module = make("RandomPerspective")
    operation = kornia_op(module)
    assert operation.module is not module
    before = pickle.dumps(operation)
    first = operation.apply(IMAGES.clone(), numbers())
    assert pickle.dumps(operation) == before  # Kornia keeps what it drew, on a GPU on the GPU
    assert module._params == {}
    module.p = 0.0
    assert torch.equal(operation.apply(IMAGES.clone(), numbers()), first)


def test_a_module_in_half_precision_draws_in_single_precision() -> None:
    changed = kornia_op(make("RandomBrightness").half()).apply(IMAGES.clone(), numbers())
    assert torch.equal(changed, kornia_op(make("RandomBrightness")).apply(IMAGES.clone(), numbers()))


@pytest.mark.parametrize("build", [lambda: make("RandomElasticTransform"), *SEVERAL.values()])
def test_operations_survive_copies_and_pickles(build: Callable[[], nn.Module]) -> None:
    operation = kornia_op(build())
    expected = operation.apply(IMAGES.clone(), numbers())
    for other in (copy.deepcopy(operation), pickle.loads(pickle.dumps(operation))):
        assert torch.equal(other.apply(IMAGES.clone(), numbers()), expected)
    assert operation == operation
    assert operation != kornia_op(build())
    assert len({operation, operation}) == 1
    assert type(operation.module).__name__ in repr(operation)


class _Returns(kornia_augmentation.IntensityAugmentationBase2D):
    """An augmentation of one's own that breaks its promise."""

    def __init__(self, result: Callable[[Tensor], Any], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.result = result

    def apply_transform(self, input: Tensor, *_: Any, **__: Any) -> Any:
        return self.result(input)


def test_only_images_that_drew_the_augmentation_are_worked_on() -> None:
    seen = []
    operation = kornia_op(_Returns(lambda image: seen.append(image) or 1 - image, p=0.2))
    images = torch.rand(100, 3, 4, 4)
    changed = operation.apply(images.clone(), numbers(range(100)))
    assert len(seen) == int((changed != images).flatten(1).any(dim=1).sum())


def test_no_gradient_comes_from_learned_augmentations() -> None:
    tint = nn.Parameter(torch.tensor(0.5))
    assert not kornia_op(_Returns(lambda image: image * tint)).apply(IMAGES.clone(), numbers()).requires_grad


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda image: image[:, :1],
            r"Kornia's _Returns made of shape \[1, 1, 48, 40\] of an image of shape \[1, 3, 48",
        ),
        (lambda image: image[0], r"of shape \[3, 48, 40\] of an image .* must keep the batch and the channels"),
        (lambda image: (image, 1), "made a tuple of an image of shape"),
    ],
)
def test_results_that_are_no_image_say_so(result: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kornia_op(_Returns(result)).apply(IMAGES.clone(), numbers())


def test_sizes_that_differ_say_what_to_do() -> None:
    operation = kornia_op(kornia_augmentation.RandomResizedCrop((16, 16), p=0.5))
    with pytest.raises(ValueError, match=r"RandomResizedCrop made images .* \(16, 16\) and \(48, 40\) pixels.*p=1"):
        operation.apply(IMAGES.clone(), numbers())


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.Identity(), TypeError, r"takes a 2D augmentation .* but got a Identity. views_from adapts any other"),
        (enhance.Invert(), TypeError, "but got a Invert. views_from adapts"),
        (kornia_augmentation.RandomInvert, TypeError, "but got the class RandomInvert"),
        (kornia_augmentation.RandomRotation3D((15.0, 20.0, 20.0)), TypeError, "but got a RandomRotation3D"),
        (
            kornia_augmentation.VideoSequential(kornia_augmentation.RandomInvert()),
            TypeError,
            "but got a VideoSequential",
        ),
        (
            kornia_augmentation.RandomCutMixV2(use_correct_lambda=True),
            TypeError,
            "RandomCutMixV2 mixes images with each other, but an operat",
        ),
        (
            kornia_augmentation.AugmentationSequential(kornia_augmentation.RandomMixUpV2()),
            TypeError,
            "RandomMixUpV2 mixes images with each other.* Mix the finished views instead",
        ),
        (
            kornia_augmentation.Normalize(torch.zeros(3), torch.ones(3)),
            ValueError,
            r"Kornia's Normalize leaves the range \[0, 1\] .* Put contrastive.augmentations.Normalize at the end",
        ),
        (
            kornia_augmentation.ImageSequential(enhance.Normalize(torch.zeros(3), torch.ones(3))),
            ValueError,
            "Kornia's Normalize leaves the range",
        ),
        (
            kornia_augmentation.RandomInvert(same_on_batch=True),
            ValueError,
            "RandomInvert has same_on_batch=True, but an operation .* Leave same_on_batch out.",
        ),
        (
            kornia_augmentation.AugmentationSequential(kornia_augmentation.RandomInvert(), same_on_batch=True),
            ValueError,
            "AugmentationSequential has same_on_batch=True",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_unfit_modules_say_what_to_do(module: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kornia_op(module)


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, and random numbers drawn there, on a machine that has none.

    To be entered after a FakeTensorMode, whose tensors stand for those on the GPU; what runs on the host is real.
    """

    READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "_linalg_check_errors")

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(
        self, function: OpOverload, types: Any, positional: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        tensors = [leaf for leaf in tree_leaves((positional, named)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        target = torch.device(named.get("device") or ("cuda" if on_gpu else "cpu"))
        self.found.update(self._waits(function, positional, named, tensors, target))
        if on_gpu or target.type == "cuda" or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return function(*positional, **named)
        with unset_fake_temporarily():
            return function(*positional, **named)

    def _waits(
        self, function: OpOverload, positional: Any, named: dict[str, Any], tensors: list[Tensor], target: torch.device
    ) -> Iterator[str]:
        name = function.overloadpacket.__name__
        kinds = {tensor.device.type for tensor in tensors if tensor.ndim}
        if name == "_to_copy" and target.type != tensors[0].device.type:
            if target.type == "cpu" or not named.get("non_blocking"):
                yield "blocking copy"
        elif name == "copy_" and tensors[0].device != tensors[1].device:
            if not tensors[0].is_cuda or len(positional) < 3 or positional[2] is not True:
                yield "blocking copy"
        elif name in ("index", "index_put", "index_put_") and len(kinds) > 1:
            yield "index from the host"
        elif name in self.READS_BACK and any(tensor.is_cuda for tensor in tensors):
            yield name
        elif torch.Tag.nondeterministic_seeded in function.tags and target.type == "cuda":
            yield "random numbers"


def waits_of(run: Callable[[Tensor], object]) -> Counter[str]:
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        run(torch.empty(2, 3, 48, 40, device="cuda"))
    return waits.found


# Fake tensors know no affine sampling with cuDNN, and JPEG waits for its stream once, to bring its tables there.
@pytest.mark.parametrize(
    "name", sorted({*NAMES} - {"RandomFisheye", "RandomRotation", "RandomRotation90", "RandomJPEG"})
)
def test_images_on_a_gpu_are_not_waited_for(name: str) -> None:
    operation = kornia_op(make(name))
    words = numbers(range(2))
    kornias_own = {"_linalg_check_errors": 2} if name == "RandomThinPlateSpline" else {}
    assert waits_of(lambda images: operation.apply(images, words)) == kornias_own


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda images: images * torch.rand(3, 1, 1).to("cuda"), "blocking copy"),
        (lambda images: images.cpu(), "blocking copy"),
        (lambda images: images[0].copy_(torch.rand(3, 48, 40)), "blocking copy"),
        (lambda images: torch.tensor([1.0], device="cuda"), "blocking copy"),
        (lambda images: images[torch.tensor([0])], "index from the host"),
        (lambda images: torch.rand_like(images), "random numbers"),
        (lambda images: torch.linalg.inv(images[..., :40, :40]), "_linalg_check_errors"),
    ],
)
def test_waits_are_seen(run: Callable[[Tensor], object], expected: str) -> None:
    assert waits_of(run) == {expected: 1}
