"""Tensors and adapted data sets as data modules."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from contrastive.data import LoadingError, TensorImages, from_dataset

IMAGES = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


class Items:
    """A map-style data set of given items."""

    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_tensor_batches_are_the_rows_they_are_named_after() -> None:
    data = TensorImages(IMAGES, LABELS, IMAGES[:7], LABELS[:7], batch_size=6)
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [6, 6, 6]
    for batch in batches:
        torch.testing.assert_close(batch["image"], torch.stack([IMAGES[k] for k in batch["index"].tolist()]))
        assert batch["label"].tolist() == [k % 3 for k in batch["index"].tolist()]
    assert torch.cat([batch["index"] for batch in data.val_dataloader()]).tolist() == list(range(7))
    assert torch.cat([batch["index"] for batch in data.bank_dataloader()]).tolist() == list(range(20))
    assert data.classes == ["0", "1", "2"]


def test_tensors_without_labels_give_batches_without_labels() -> None:
    data = TensorImages(IMAGES, batch_size=4)
    assert sorted(next(iter(data.train_dataloader()))) == ["image", "index"]
    assert data.classes is None
    assert data.num_classes is None
    assert data.val_dataloader() == []


def test_a_batch_does_not_share_memory_with_the_stored_images() -> None:
    data = TensorImages(IMAGES.clone(), batch_size=4)
    next(iter(data.bank_dataloader()))["image"].zero_()
    torch.testing.assert_close(data.images("train"), IMAGES)


def test_iterating_tensors_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(TensorImages(IMAGES, batch_size=4).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"train_images": IMAGES / 255},
            TypeError,
            r"train_images must be uint8 as decoded, 0\.\.255, but they are torch.float32",
        ),
        ({"train_images": IMAGES[:, :1]}, ValueError, r"must be \[N, 3, H, W\], but they are \[20, 1, 6, 5\]"),
        (
            {"train_images": IMAGES.permute(0, 2, 3, 1)},
            ValueError,
            r"For \[N, H, W, 3\] use images\.permute\(0, 3, 1, 2\)",
        ),
        ({"train_labels": LABELS.int()}, TypeError, r"train_labels must be int64, but they are torch\.int32"),
        ({"train_labels": LABELS[:5]}, ValueError, r"one for each of 20 images, but they are \[5\]"),
        ({"classes": ["a", "b"]}, ValueError, r"train_labels must be in 0\.\.1 for 2 classes, but they are in 0\.\.2"),
        ({"val_labels": LABELS}, ValueError, "val_labels were given without val_images"),
        (
            {"val_images": IMAGES, "val_labels": LABELS + 1},
            ValueError,
            r"val_labels must be in 0\.\.2 for 3 classes, but they are in 1\.\.3",
        ),
        (
            {"train_labels": None, "val_images": IMAGES, "val_labels": LABELS},
            ValueError,
            "val_labels were given without train_labels, so their classes are unknown",
        ),
    ],
)
def test_wrong_tensors_are_named(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TensorImages(**{"train_images": IMAGES, "train_labels": LABELS, "batch_size": 4} | wrong)


def test_fewer_tensors_than_one_global_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="There are 20 training images, fewer than one global batch of 21"):
        TensorImages(IMAGES, batch_size=21).train_dataloader()


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        as_pil,
        lambda image: image.permute(1, 2, 0).numpy(),
        lambda image: (image, 1),
        lambda image: [as_pil(image), torch.tensor(1), "more"],
        lambda image: {"image": image, "label": np.int64(1)},
        lambda image: {"image": as_pil(image)},
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_kind_of_item_becomes_the_same_batch(convert: Any, num_workers: int) -> None:
    data = from_dataset(Items([convert(image) for image in IMAGES]), batch_size=7, num_workers=num_workers)
    batches = list(data.bank_dataloader())
    torch.testing.assert_close(torch.cat([batch["image"] for batch in batches]), IMAGES)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(20))
    item = convert(IMAGES[0])
    labelled = isinstance(item, tuple | list) or (isinstance(item, dict) and "label" in item)
    assert all(("label" in batch) == labelled for batch in batches)
    if labelled:
        assert batches[0]["label"].dtype == torch.int64
        assert batches[0]["label"].tolist() == [1] * 7


def test_grey_items_become_three_equal_channels() -> None:
    grey = IMAGES[0, 0]
    for item in (grey, grey[None], grey.numpy(), grey.numpy()[..., None], Image.fromarray(grey.numpy())):
        (batch,) = from_dataset(Items([item]), batch_size=1, num_workers=0).bank_dataloader()
        torch.testing.assert_close(batch["image"], IMAGES[:1, [0, 0, 0]])


def test_adapted_images_are_resized_where_asked() -> None:
    items = [torch.zeros(3, height, 20, dtype=torch.uint8) for height in (10, 30)]
    (batch,) = from_dataset(Items(items), batch_size=2, image_size=8, num_workers=0).bank_dataloader()
    assert batch["image"].shape == (2, 3, 8, 8)
    with pytest.raises(
        LoadingError, match=r"Images of one batch are of different sizes: 10 x 20 and 30 x 20 pixels\. Give image_size"
    ):
        list(from_dataset(Items(items), batch_size=2, num_workers=0).bank_dataloader())


def test_classes_come_from_the_data_set_or_the_argument() -> None:
    items = [(image, 0) for image in IMAGES]
    assert from_dataset(Items(items, ["cat", "dog"]), batch_size=4).classes == ["cat", "dog"]
    assert from_dataset(Items(items), batch_size=4, classes=["hen"]).num_classes == 1
    assert from_dataset(Items(items), batch_size=4).classes is None
    with pytest.raises(ValueError, match=r"Only in validation: dgo \(did you mean dog\?\)"):
        from_dataset(Items(items, ["cat", "dog"]), Items(items, ["cat", "dgo"]), batch_size=4)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(IMAGES)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (Items([IMAGES[0] / 255]), TypeError, r"but the data set gave a Tensor of torch\.float32\. Take ToTensor"),
        (Items([np.zeros((4, 4, 3))]), TypeError, "but the data set gave a ndarray of float64"),
        (Items(["cat.jpg"]), TypeError, "but the data set gave str"),
        (Items([IMAGES[0].permute(1, 2, 0)]), ValueError, r"the data set gave a Tensor of \[6, 5, 3\]\. Transpose it"),
        (Items([IMAGES[0].numpy()]), ValueError, r"the data set gave a ndarray of \[3, 6, 5\]\. Transpose it"),
        (Items([{"img": IMAGES[0]}]), TypeError, r"needs the key 'image', but has \['img'\]"),
        (
            Items([(IMAGES[0], "cat")]),
            TypeError,
            "A label is an integer, 0 for the first class, but the data set gave 'cat'",
        ),
        (Stream(), TypeError, "Stream is not map-style: it lacks __len__ or __getitem__"),
    ],
)
def test_wrong_items_are_named_at_once(items: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_dataset(items, batch_size=1)


def test_an_adapted_data_set_can_be_taken_into_memory() -> None:
    tensors = from_dataset(
        Items(list(zip(IMAGES, LABELS.tolist(), strict=True))), batch_size=4, num_workers=0
    ).as_tensors()
    torch.testing.assert_close(tensors.images("train"), IMAGES)
    torch.testing.assert_close(tensors.labels("train"), LABELS)


class StreamOfKnownLength(Stream):
    def __len__(self) -> int:
        return len(IMAGES)


def test_nothing_to_train_on_or_to_validate_on_is_an_error_at_once() -> None:
    full, none = list(IMAGES), list(IMAGES[:0])
    with pytest.raises(
        ValueError, match=r"The training data set is empty: it has no image at all\. Give one that has some"
    ):
        from_dataset(none, batch_size=2)
    with pytest.raises(ValueError, match=r"The validation data set is empty: .* or leave it out for no validation\."):
        from_dataset(full, none, batch_size=2)
    with pytest.raises(ValueError, match="The training data set is empty"):
        TensorImages(IMAGES[:0], batch_size=2)
    with pytest.raises(ValueError, match="The validation data set is empty"):
        TensorImages(IMAGES, None, IMAGES[:0], batch_size=2)
    with pytest.raises(
        TypeError, match=r"StreamOfKnownLength is not map-style: it lacks .* or is a stream, whose images"
    ):
        from_dataset(StreamOfKnownLength(), batch_size=2)
