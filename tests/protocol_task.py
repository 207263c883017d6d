"""A task of made-up features, whose augmented images are noisy: what protocols are tried on."""

from collections.abc import Iterator, Mapping

import torch

from contrastive.evaluation import Features
from contrastive.evaluation.protocols import AugmentedBatch
from contrastive.evaluation.protocols.protocol import Split


class ClusterTask:
    """Gaussian classes. The images' numbers are not their places.

    Args:
        num_train: Training images.
        num_test: Test images.
        num_classes: C.
        width: Of the features.
        spread: Standard deviation within a class; its centres are of standard deviation 1.
        noise: Standard deviation of an augmented image about the image.
    """

    def __init__(
        self,
        *,
        num_train: int = 60,
        num_test: int = 30,
        num_classes: int = 6,
        width: int = 8,
        spread: float = 1.0,
        noise: float = 0.1,
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.num_classes = num_classes
        self.noise = noise
        centres = torch.randn(num_classes, width, generator=generator)
        self.splits: dict[Split, Features] = {}
        sizes: dict[Split, int] = {"train": num_train, "val": num_test}
        for split, count in sizes.items():
            labels = torch.arange(count) % num_classes
            features = centres[labels] + spread * torch.randn(count, width, generator=generator)
            self.splits[split] = Features(features, labels, 10 + 3 * torch.arange(count))
        self.encoded = 0

    @property
    def inputs(self) -> Mapping[str, slice]:
        return {"features": slice(None)}

    def features(self, split: Split, *, blocks: bool = False) -> Features:
        return self.splits[split]

    def augmented(
        self, epoch: int, *, batch_size: int, crop_min: float, seed: int, blocks: bool = False
    ) -> Iterator[AugmentedBatch]:
        train = self.splits["train"]
        assert train.labels is not None
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(train), generator=generator)
        for step in range(self.num_batches(batch_size)):
            rows = order[step * batch_size : (step + 1) * batch_size]
            self.encoded += len(rows)
            noisy = train.features[rows]
            noisy = noisy + self.noise * torch.randn(noisy.shape, generator=generator)
            yield AugmentedBatch(noisy, train.labels[rows], train.index[rows])

    def num_batches(self, batch_size: int) -> int:
        return len(self.splits["train"]) // batch_size
