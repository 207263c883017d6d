"""The view of an image in an epoch is one and the same, however training is cut into batches, ranks and runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive.augmentations import SampleKey, Views, byol_views
from contrastive.data import ImageFolders
from contrastive.data.samplers import TrainSampler
from tests.ranks import Ranks
from tests.reference_augmentations import photographs

COUNT, EPOCH, RUN_SEED = 64, 3, 11
Made = dict[int, bytes]  # by the image's index: the bits of its views


def pipeline(backend: str) -> Views:
    """Two unequal views in which everything can happen."""
    return replace(byol_views(24), backend=backend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images as files."""
    root = tmp_path_factory.mktemp("images")
    for number, image in enumerate(photographs(COUNT, 32, 32)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"{number:03}.png")
    return root


def loader_of(folder: Path, batch_size: int, num_workers: int, order: int) -> torch.utils.data.DataLoader:
    data = ImageFolders(folder, image_size=32, batch_size=batch_size, num_workers=num_workers, seed=order)
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, TrainSampler)
    loader.sampler.set_epoch(EPOCH)
    return loader


def views_of(batch: dict[str, Tensor], views: Views) -> Made:
    made = views(batch["image"], SampleKey(RUN_SEED, EPOCH, batch["index"]))
    return {
        int(index): b"".join(view[row].numpy().tobytes() for view in made)
        for row, index in enumerate(batch["index"].tolist())
    }


def epoch_of(folder: Path, batch_size: int, num_workers: int = 0, order: int = 0, backend: str = "native") -> Made:
    """All views of an epoch on this rank."""
    made: Made = {}
    for batch in loader_of(folder, batch_size, num_workers, order):
        made |= views_of(batch, pipeline(backend))
    return made


@pytest.fixture(scope="module", params=["torch", "native"])
def one_by_one(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Made]:
    """A backend's name, and each image's views made in a batch of its own, in stored order."""
    images = photographs(COUNT, 32, 32)
    views = pipeline(request.param)
    made: Made = {}
    for row in range(COUNT):
        made |= views_of({"image": images[row : row + 1], "index": torch.tensor([row])}, views)
    return request.param, made


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "order"), [(1, 0, 0), (7, 0, 1), (64, 0, 2), (7, 1, 3), (16, 2, 0)]
)
def test_batch_size_order_and_workers_change_no_view(
    batch_size: int, num_workers: int, order: int, one_by_one: tuple[str, Made], folder: Path
) -> None:
    backend, expected = one_by_one
    made = epoch_of(folder, batch_size, num_workers, order, backend)
    assert len(made) == COUNT // batch_size * batch_size
    assert made == {index: expected[index] for index in made}


def test_two_ranks_make_the_views_that_one_makes(one_by_one: tuple[str, Made], folder: Path, two_ranks: Ranks) -> None:
    backend, expected = one_by_one
    first, second = two_ranks(epoch_of, folder, 8, 0, 0, backend)
    assert len(first) == len(second) == COUNT // 2
    assert not first.keys() & second.keys()
    assert first | second == expected


def test_a_resumed_epoch_goes_on_with_the_same_views(one_by_one: tuple[str, Made], folder: Path) -> None:
    backend, expected = one_by_one
    before = loader_of(folder, 8, 0, 0)
    made: Made = {}
    batches = iter(before)
    for _ in range(3):
        made |= views_of(next(batches), pipeline(backend))
    after = loader_of(folder, 8, 2, 0)
    after.load_state_dict(before.state_dict())
    for batch in after:
        resumed = views_of(batch, pipeline(backend))
        assert not resumed.keys() & made.keys()
        made |= resumed
    assert made == expected


def test_another_epoch_or_run_makes_other_views(one_by_one: tuple[str, Made]) -> None:
    """What the tests above compare must not be equal for some duller reason."""
    backend, expected = one_by_one
    images = photographs(COUNT, 32, 32)
    for key in (
        SampleKey(RUN_SEED, EPOCH + 1, torch.arange(COUNT)),
        SampleKey(RUN_SEED + 1, EPOCH, torch.arange(COUNT)),
    ):
        made = pipeline(backend)(images, key)
        others = [b"".join(view[row].numpy().tobytes() for view in made) for row in range(COUNT)]
        assert not set(others) & set(expected.values())
    assert len(set(expected.values())) == COUNT
