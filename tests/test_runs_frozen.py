"""The task that protocols see: features, and augmented batches, of a frozen encoder."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from contrastive.augmentations import CIFAR10, IMAGENET, SampleKey, evaluation_views, simclr_views
from contrastive.data import ImageFolders, TensorImages
from contrastive.evaluation.protocols import AugmentedBatch, Task
from contrastive.runs.finetuning import crops_and_flips
from contrastive.runs.frozen import FrozenTask
from tests import tiny
from tests.reference_augmentations import photographs, torchvision_view

VIEWS = simclr_views(8, blur=False, normalize=CIFAR10)


class Channels(nn.Module):
    """Means and deviations of the channels: [B, 3, H, W] to [B, 6], no two images in one sum."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """PNG files of all sizes: 10 to train on and 5 to validate, in two classes."""
    for split, count in (("train", 10), ("val", 5)):
        for number in range(count):
            file = tmp_path / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = photographs(1, 20 + number, 31 - number, seed=number)[0]
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    return tmp_path


def folders(folder: Path, **options: Any) -> ImageFolders:
    return ImageFolders(folder / "train", folder / "val", batch_size=3, num_workers=0, **options)


def epoch(task: FrozenTask, number: int = 0, **options: Any) -> list[AugmentedBatch]:
    settings: dict[str, Any] = {"batch_size": 4, "crop_min": 0.2, "seed": 5}
    return list(task.augmented(number, **(settings | options)))


def rows(batches: list[AugmentedBatch]) -> Iterator[tuple[int, Tensor, int]]:
    for batch in batches:
        yield from zip(batch.index.tolist(), batch.features, batch.labels.tolist(), strict=True)


def test_features_are_those_of_each_file_read_resized_cut_and_normalised_by_torchvision(folder: Path) -> None:
    data = folders(folder)
    encoder = tiny.DenseEncoder().eval()
    task: Task = FrozenTask(encoder, evaluation_views(8, resize=12), data)
    assert task.num_classes == 2
    for split, files in (("train", data.train_files), ("val", data.val_files)):
        found = task.features(split)
        for row, file in enumerate(files):
            image = tv.resize(Image.open(folder / split / file), 12)
            pixels = tv.normalize(tv.to_tensor(tv.center_crop(image, 8)), IMAGENET.mean, IMAGENET.std)
            with torch.no_grad():
                expected = encoder(pixels[None])[0]
            torch.testing.assert_close(found.features[row], expected, atol=0.02, rtol=0)  # Pillow rounds to 8 bits
        assert found.index.tolist() == list(range(len(files)))
        assert found.labels is not None
        assert [f"class{label}" for label in found.labels.tolist()] == [file.split("/")[0] for file in files]


def test_an_augmented_image_is_torchvisions_crop_and_flip_with_the_numbers_drawn_for_it(folder: Path) -> None:
    data = folders(folder)
    encoder = tiny.DenseEncoder().eval()
    task = FrozenTask(encoder, VIEWS, data)
    seen = []
    for index, features, label in rows(epoch(task, 3)):
        file = data.train_files[index]
        image = torch.from_numpy(np.array(Image.open(folder / "train" / file))).permute(2, 0, 1)
        key = SampleKey(5, 3, torch.tensor([index]))
        ((program,),) = crops_and_flips(VIEWS, 0.2).programs(image[None], key)
        with torch.no_grad():
            expected = encoder(torchvision_view(image, program, 0, CIFAR10)[None])[0]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        assert file.startswith(f"class{label}/")
        seen.append(index)
    assert len(seen) == len(set(seen)) == 8  # of 10, the ragged end dropped
    assert task.num_batches(4) == 2


def test_crops_keep_at_least_crop_min_of_the_image_and_half_of_them_are_mirrored() -> None:
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)  # over the columns: what a crop keeps shows in its range
    images = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T, torch.zeros(64, 64, dtype=torch.uint8)])
    data = TensorImages(images.repeat(400, 1, 1, 1), torch.zeros(400, dtype=torch.int64), batch_size=8)

    class Spans(nn.Module):
        def forward(self, view: Tensor) -> Tensor:
            across, down = view[:, 0].mean(1), view[:, 1].mean(2)  # [B, 8] each
            return torch.stack([across[:, -1] - across[:, 0], down[:, -1] - down[:, 0]], dim=1) * 8 / 7

    task = FrozenTask(Spans(), evaluation_views(8, normalize=None), data)
    for crop_min in (0.08, 0.5):
        spans = torch.cat([batch.features for batch in epoch(task, batch_size=100, crop_min=crop_min)])
        area = spans.abs().prod(1)
        assert crop_min - 0.08 < area.min() < crop_min + 0.05
        assert area.max() > 0.9
        assert 150 < (spans[:, 0] < 0).sum() < 250
        assert (spans[:, 1] > 0).all()


def test_an_epoch_repeats_and_another_seed_or_epoch_has_another_order_and_other_crops() -> None:
    task = FrozenTask(Channels(), VIEWS, tiny.data(20))
    first, again = epoch(task), epoch(task)
    for one, other in zip(first, again, strict=True):
        assert one.features.equal(other.features)
        assert one.index.equal(other.index)
    by_index = {index: features for index, features, _ in rows(first)}
    for others in (epoch(task, 1), epoch(task, seed=6)):
        assert [index for index, _, _ in rows(others)] != list(by_index)
        assert not any(by_index[index].equal(features) for index, features, _ in rows(others) if index in by_index)


def test_excluded_images_are_in_no_features_and_no_batch_and_the_others_keep_their_numbers() -> None:
    data = tiny.data(20)
    out = torch.tensor([0, 7, 19])
    task, whole = FrozenTask(Channels(), VIEWS, data, exclude=out), FrozenTask(Channels(), VIEWS, data)
    kept = [number for number in range(20) if number not in out]
    found = task.features("train")
    assert found.index.tolist() == kept
    assert found.features.equal(whole.features("train").features[kept])
    assert found.labels is not None
    assert found.labels.tolist() == [number % 4 for number in kept]
    assert len(task.features("val")) == 10  # numbers of validation images are others
    assert task.num_batches(17) == 1
    (batch,) = epoch(task, batch_size=17)
    assert sorted(batch.index.tolist()) == kept
    assert batch.labels.equal(batch.index % 4)


def test_the_encoder_is_left_as_it_was_while_batches_are_taken_and_after() -> None:
    encoder = nn.Sequential(tiny.ConvEncoder(), nn.Dropout())
    encoder.train()
    encoder[0][1].eval()  # a frozen layer
    before, modes = copy.deepcopy(encoder.state_dict()), [part.training for part in encoder.modules()]
    task = FrozenTask(encoder, VIEWS, tiny.data(20))
    state = torch.get_rng_state()
    task.features("train")
    for batch in task.augmented(0, batch_size=4, crop_min=0.2, seed=0):
        assert [part.training for part in encoder.modules()] == modes
        assert not batch.features.requires_grad
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert task.features("train").features.equal(FrozenTask(encoder, VIEWS, tiny.data(20)).features("train").features)


def test_features_are_extracted_once_and_progress_counts_every_image() -> None:
    told: list[tuple[str, int, int]] = []
    task = FrozenTask(Channels(), VIEWS, tiny.data(20), progress=lambda *what: told.append(what))
    assert task.features("train") is task.features("train")
    assert told == [("training images", 16, 20), ("training images", 20, 20)]


def test_mixed_precision_is_of_the_encoder_alone() -> None:
    encoder = tiny.DenseEncoder().eval()
    data = tiny.data(20)
    exact, mixed = (FrozenTask(encoder, VIEWS, data, precision=how) for how in ("32-true", "bf16-mixed"))
    for one, other in ((exact.features("val").features, mixed.features("val").features),):
        assert other.dtype == torch.float32
        assert not other.equal(one)
        torch.testing.assert_close(other, one, atol=0.03, rtol=0.03)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = encoder(VIEWS.evaluation_view(data.images("val")[:10])).float()
    assert mixed.features("val").features.equal(expected)


def test_labels_that_are_unknown_are_negative_in_a_batch() -> None:
    task = FrozenTask(Channels(), VIEWS, TensorImages(tiny.images(8), batch_size=4))
    (batch,) = epoch(task, batch_size=8)
    assert batch.labels.tolist() == [-1] * 8
    with pytest.raises(ValueError, match=r"^The data set has no labels to judge features by\. Give class folders"):
        assert task.num_classes


def test_what_is_missing_is_said() -> None:
    task = FrozenTask(Channels(), VIEWS, TensorImages(tiny.images(8), torch.arange(8), batch_size=4))
    with pytest.raises(ValueError, match=r"^The data set has no validation images to score features on\. Give fold"):
        task.features("val")
    with pytest.raises(ValueError, match=r"^There are 8 training images, fewer than one global batch of 9"):
        epoch(task, batch_size=9)
    nothing = FrozenTask(Channels(), VIEWS, tiny.data(20), exclude=torch.arange(20))
    with pytest.raises(ValueError, match=r"^All training images are left out, as they are test images too\. Test on"):
        nothing.features("train")


def test_blocks_of_a_transformer_are_more_columns_and_of_any_other_encoder_its_output() -> None:
    plain = FrozenTask(Channels(), VIEWS, tiny.data(20))
    assert plain.features("val", blocks=True) is plain.features("val")
    assert list(plain.inputs.values()) == [slice(None)]
    encoder = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    images = tiny.images(8, 32)
    task = FrozenTask(encoder, simclr_views(32, blur=False), TensorImages(images, None, images, batch_size=4))
    wide, narrow = task.features("val", blocks=True).features, task.features("val").features
    assert wide.shape == (8, 5 * narrow.shape[1])
    torch.testing.assert_close(wide[:, task.inputs["last 1"]], narrow)
    for one, other in zip(epoch(task, blocks=True), epoch(task), strict=True):
        torch.testing.assert_close(one.features[:, task.inputs["last 1"]], other.features)
