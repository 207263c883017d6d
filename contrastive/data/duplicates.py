"""Images that a data set has twice, above all those that are both trained on and tested on."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.data.image_folders import ImageFolders
from contrastive.data.manifest import By, Manifest, manifest
from contrastive.data.module import ImageData


@dataclass(frozen=True)
class Duplicates:
    """What a data set has twice.

    Attributes:
        by: What was compared: "pixels" or "contents".
        train_in_test: Numbers, ascending, of the training images that are validation images too.
        test_in_train: How many validation images are training images too.
        within_train: How many training images repeat an earlier one.
        within_test: How many validation images do.
    """

    by: By
    train_in_test: Int64[Tensor, " E"]
    test_in_train: int
    within_train: int
    within_test: int


def duplicates(data: ImageData, *, by: By | None = None) -> Duplicates:
    """Find images that are exactly equal. Ranks share the work, and each gets the whole.

    Leave ``train_in_test`` out of the training side, and all validation images are scored, as published: the number
    of images that an accuracy is of stays comparable.

    Args:
        data: The images.
        by: "contents": files of the same bytes, which is found as fast as files are read. "pixels": images that are
            the same as they are loaded, such as one picture saved losslessly by two programs; loads each image once.
            Files are compared by contents and other images by pixels, unless given.

    Raises:
        ValueError: ``by`` is "times", which do not tell what is in a file; or contents, where there are no files.
    """
    if by is None:
        by = "contents" if isinstance(data, ImageFolders) else "pixels"
    test = manifest(data, "val", by=by) if data.num_images("val") else None
    return compare(manifest(data, "train", by=by), test)


def compare(train: Manifest, test: Manifest | None) -> Duplicates:
    """The same of manifests that are known already.

    Args:
        train: Of the training images.
        test: Of the validation images, by the same; None where there are none.

    Raises:
        ValueError: They are by times, which do not tell what is in a file, or not by the same.
    """
    if train.by == "times" or (test is not None and test.by != train.by):
        raise ValueError(
            f"Manifests by {' and '.join(sorted({train.by} | ({test.by} if test else set())))} do not tell whether two "
            'images are equal. Make both by="contents" or by="pixels".'
        )
    hashes = test.hashes if test else []
    in_train, in_test = set(train.hashes), set(hashes)
    shared = [number for number, one in zip(train.numbers.tolist(), train.hashes, strict=True) if one in in_test]
    return Duplicates(
        by=train.by,
        train_in_test=torch.tensor(shared, dtype=torch.int64),
        test_in_train=sum(one in in_train for one in hashes),
        within_train=len(train.hashes) - len(in_train),
        within_test=len(hashes) - len(in_test),
    )
