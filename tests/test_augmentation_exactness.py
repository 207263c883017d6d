"""Every operation and pipeline on every backend against torchvision, by the function behind the README's table."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import augmentation_exactness
from benchmarks.augmentation_exactness import Difference, available, bound_from_float32, measure, subjects
from benchmarks.images import CONTENTS
from contrastive.augmentations.backends import native_backend

TARGETS = [str(target) for target in available()]


@pytest.fixture(scope="module")
def differences() -> list[Difference]:
    return [
        *measure(available(), size=32, num_images=12, seed=1),
        *measure(available(), size=224, num_images=2, seed=1),
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_every_operation_and_pipeline_equals_torchvision(target: str, differences: list[Difference]) -> None:
    of_target = [one for one in differences if one.target == target]
    assert {(one.subject, one.content, one.size) for one in of_target} == {
        (subject, content, size) for size in (32, 224) for subject in subjects(size) for content in CONTENTS
    }
    assert [failure for one in of_target if (failure := one.failure())] == []


def test_torchvision_in_float32_is_further_from_itself_than_we_are(differences: list[Difference]) -> None:
    crops = [
        one for one in differences if one.subject == "crop, bilinear" and one.content == "noise" and one.size == 224
    ]
    assert len(crops) == len(TARGETS)
    assert all(one.from_float64 < one.torchvision / 10 for one in crops)


def test_the_bounds_are_those_that_the_readme_tells() -> None:
    assert augmentation_exactness.BOUND == 1e-5
    assert [bound_from_float32(content, 32) for content in CONTENTS] == [1e-5, 1e-5, 1e-5]
    assert {content: bound_from_float32(content, 224) for content in CONTENTS} == {
        "photographs": 5e-5,
        "flat": 1e-5,
        "noise": 2e-4,
    }


@pytest.mark.parametrize(
    ("from_float32", "from_float64", "failure"),
    [
        (1.9e-4, 0.9e-5, None),
        (2.1e-4, 0.9e-5, "native: blur of noise at 224 px is 2.1e-04 from torchvision in float32, above 2.0e-04"),
        (1e-6, 1.1e-5, "native: blur of noise at 224 px is 1.1e-05 from torchvision in float64, above 1.0e-05"),
        (math.nan, 0.0, "native: blur of noise at 224 px is nan from torchvision in float32, above 2.0e-04"),
        (0.0, math.nan, "native: blur of noise at 224 px is nan from torchvision in float64, above 1.0e-05"),
    ],
)
def test_what_is_above_its_bound_is_named(from_float32: float, from_float64: float, failure: str | None) -> None:
    assert Difference("native", "blur", 224, "noise", from_float32, from_float64, 0.0).failure() == failure


def wrong_in_one_pixel(render: Callable[..., None]) -> Callable[..., None]:
    def rendered(images: Any, program: Any, normalize: Any, out: Tensor) -> None:
        render(images, program, normalize, out)
        out[-1, -1, -1, -1] += 3e-5

    return rendered


def test_the_command_appends_a_row_for_each_backend_and_fails_if_one_pixel_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    words = ["--backends", "torch", "native", "--sizes", "8", "--images", "2", "--output", str(file)]
    assert augmentation_exactness.main(words) == 0
    assert "solarize" in capsys.readouterr().out
    monkeypatch.setattr(native_backend, "render", wrong_in_one_pixel(native_backend.render))
    assert augmentation_exactness.main(words) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(subjects(8)) * len(CONTENTS)
    assert errors[0].startswith("error: native: crop, bilinear of photographs at 8 px is 3.0e-05 from torchvision")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["target"] for row in rows] == ["torch", "native"] * 2
    assert all(len(row["differences"]) == len(subjects(8)) * len(CONTENTS) for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "8"], "1 sizes need as many numbers of --images, but there are [64, 16]"),
        (["--backends", "torch", "mlx"], "no backend mlx here; triton needs an NVIDIA GPU"),
    ],
)
def test_wrong_options_are_usage_errors(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        augmentation_exactness.main(words)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", CONTENTS)
def test_images_have_the_sides_asked_for_and_are_a_function_of_the_seed(content: str) -> None:
    sides = [(5, 9), (427, 640), (32, 32)]
    images, again, other = (CONTENTS[content](sides, seed) for seed in (0, 0, 1))
    assert [tuple(image.shape) for image in images] == [(3, *side) for side in sides]
    assert all(image.dtype == torch.uint8 and image.is_contiguous() for image in images)
    assert all(torch.equal(one, two) for one, two in zip(images, again, strict=True))
    assert not torch.equal(images[0], other[0])


def test_among_flat_images_are_black_and_white_and_noise_has_every_level() -> None:
    colour, black, white = CONTENTS["flat"]([(4, 4)] * 3, 0)
    assert black.max() == 0
    assert white.min() == 255
    assert len(colour.flatten(1).unique(dim=1).T) == 1
    (noise,) = CONTENTS["noise"]([(64, 64)], 0)
    assert len(noise.unique()) == 256
