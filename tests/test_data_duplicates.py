"""Images that a data set has twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from contrastive.data import ImageFolders, TensorImages
from contrastive.data.duplicates import Duplicates, compare, duplicates
from contrastive.data.manifest import manifest
from tests import tiny
from tests.ranks import Ranks


def planted() -> TensorImages:
    """11 training images and 7 validation images, different but for those copied here."""
    train, val = tiny.images(18, 8).split([11, 7])
    train, val = train.clone(), val.clone()
    train[3] = train[9] = val[5]  # a training image twice, and it is tested on
    train[1] = val[0] = val[2]  # a validation image twice, and it is trained on
    train[7] = train[6] = train[4]  # three times, within training alone
    val[6] = train[10]
    val[6, 0, 0, 0] ^= 1  # nearly
    return TensorImages(train, torch.arange(11) % 2, val, torch.arange(7) % 2, batch_size=4)


def plain(found: Duplicates) -> tuple[str, list[int], int, int, int]:
    return found.by, found.train_in_test.tolist(), found.test_in_train, found.within_train, found.within_test


def of_planted() -> tuple[str, list[int], int, int, int]:
    return plain(duplicates(planted()))


def test_planted_duplicates_are_found_and_nearly_equal_images_are_none() -> None:
    assert of_planted() == ("pixels", [1, 3, 9], 3, 3, 1)


def test_they_are_those_of_comparing_every_pair() -> None:
    data = planted()
    train, val = data.images("train"), data.images("val")
    equal = (train[:, None] == val[None]).flatten(2).all(2)
    found = duplicates(data)
    assert found.train_in_test.equal(equal.any(1).nonzero()[:, 0])
    assert found.test_in_train == int(equal.any(0).sum())
    for images, count in ((train, found.within_train), (val, found.within_test)):
        assert count == sum(any(images[i].equal(images[j]) for j in range(i)) for i in range(len(images)))


def test_ranks_find_the_same(three_ranks: Ranks) -> None:
    assert three_ranks(of_planted) == [of_planted()] * 3


def test_files_are_compared_by_contents_and_one_picture_saved_twice_is_found_by_its_pixels(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", "another program")
    for split, numbers in (("train", (0, 1, 2, 3)), ("val", (2, 3, 4))):
        for number in numbers:
            file = tmp_path / split / "ab"[number % 2] / f"{split}{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            said = note if (split, number) == ("val", 3) else None
            Image.fromarray(pictures[number]).save(file, pnginfo=said)
    data = ImageFolders(tmp_path / "train", tmp_path / "val", batch_size=2, num_workers=0)
    assert data.train_files == ["a/train0.png", "a/train2.png", "b/train1.png", "b/train3.png"]
    assert plain(duplicates(data)) == ("contents", [1], 1, 0, 0)
    assert plain(duplicates(data, by="pixels")) == ("pixels", [1, 3], 2, 0, 0)
    with pytest.raises(
        ValueError, match=r"^Manifests by times do not tell whether two images are equal\. Make both by"
    ):
        duplicates(data, by="times")
    with pytest.raises(ValueError, match=r"^Manifests by contents and pixels do not tell"):
        compare(manifest(data, "train"), manifest(data, "val", by="pixels"))


def test_without_validation_images_only_training_is_looked_at() -> None:
    images = tiny.images(4, 8)
    assert plain(duplicates(TensorImages(torch.cat([images, images[:2]]), batch_size=4))) == ("pixels", [], 0, 2, 0)
