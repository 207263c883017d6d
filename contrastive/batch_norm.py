"""Keep BatchNorm from giving the answer away.

A query and its key that are normalised with the same images carry the same statistics, and the encoder learns to
match these instead of the content (He et al. 2020, https://arxiv.org/abs/1911.05722, section 3.3, "Shuffling BN").
So the batch is normalised in small groups, and an image's key in another company than its query.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from contrastive.distributed import exchange, world_size


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that, in training, normalises ``num_splits`` groups of consecutive images each by itself.

    One device then behaves as ``num_splits`` devices do. Its state is that of ``nn.BatchNorm2d``; a batch moves the
    running statistics by as much as it would undivided, towards the mean over the groups.
    """

    num_splits: int = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalise float [B, C, H, W]."""
        if not self.training or self.num_splits == 1:
            return super().forward(input)
        if len(input) % self.num_splits:
            raise ValueError(
                f"BatchNorm in {self.num_splits} groups needs a batch that {self.num_splits} divides, "
                f"got {len(input)}. Change batch_size or batch_norm_groups."
            )
        groups = input.chunk(self.num_splits)
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return torch.cat([F.batch_norm(g, None, None, self.weight, self.bias, True, 0.0, self.eps) for g in groups])
        means = [self.running_mean.clone() for _ in groups]
        variances = [self.running_var.clone() for _ in groups]
        normalised = [
            F.batch_norm(g, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for g, mean, variance in zip(groups, means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return torch.cat(normalised)


def split_batch_norm_(module: nn.Module, num_splits: int) -> None:
    """Replace every ``nn.BatchNorm2d`` within ``module`` by a ``SplitBatchNorm2d`` with the same parameters and state.

    Calling it again changes the number of splits.

    Raises:
        TypeError: A subclass of ``nn.BatchNorm2d`` stands in the way; what it adds would be lost.
    """
    for name, child in module.named_children():
        if isinstance(child, SplitBatchNorm2d):
            child.num_splits = num_splits
        elif type(child) is nn.BatchNorm2d:
            split = SplitBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            for key, value in [*child.named_parameters(), *child.named_buffers()]:
                setattr(split, key, value)
            split.num_splits = num_splits
            split.train(child.training)
            setattr(module, name, split)
        elif isinstance(child, nn.BatchNorm2d):
            raise TypeError(
                f"Cannot normalise in groups: {name!r} is a {type(child).__name__}, not a plain BatchNorm2d. "
                "Use an encoder with plain BatchNorm2d, or batch_norm_groups=1 and as many ranks as groups."
            )
        else:
            split_batch_norm_(child, num_splits)


@contextmanager
def whole_groups(network: nn.Module, chunk_size: int, batch_size: int) -> Iterator[None]:
    """Within it, ``network`` is given ``chunk_size`` images of a batch, and normalises the groups that they are.

    Raises:
        ValueError: The chunk holds a part of a group; its statistics would be those of a smaller group.
    """
    layers = [m for m in network.modules() if isinstance(m, SplitBatchNorm2d) and m.training]
    num_splits = [layer.num_splits for layer in layers]
    for layer in layers:
        if chunk_size * layer.num_splits % batch_size:
            raise ValueError(
                f"BatchNorm in {layer.num_splits} groups of a batch of {batch_size} cannot be computed on a chunk of "
                f"{chunk_size} images, which cuts a group in two. Make encode_chunk_size a multiple of the "
                f"{batch_size / layer.num_splits:g} images of a group, or the groups smaller by more batch_norm_groups."
            )
    try:
        for layer in layers:
            layer.num_splits = chunk_size * layer.num_splits // batch_size
        yield
    finally:
        for layer, number in zip(layers, num_splits, strict=True):
            layer.num_splits = number


def shuffle(images: Shaped[Tensor, "B *rest"], num_splits: int) -> Shaped[Tensor, "B *rest"]:
    """Deal this rank's images out over all groups of all ranks, and receive as many.

    Of any two groups before and after, the images in common are as few as can be: the paper shuffles at random,
    dealing in turn needs no random numbers and, on R ranks, moves 1/R of what gathering all images does.

    Raises:
        ValueError: The number of groups over all ranks does not divide the batch.
    """
    ranks = world_size()
    if len(images) % (ranks * num_splits):
        raise ValueError(
            f"A batch of {len(images)} images a rank cannot be dealt out over {ranks * num_splits} groups "
            f"({ranks} ranks with {num_splits} each). Change batch_size or batch_norm_groups."
        )
    dealt = images.unflatten(0, (-1, ranks, num_splits)).movedim(0, 2).flatten(0, 2)  # [ranks * splits * n, ...]
    received = exchange(dealt)
    groups: Tensor = received.unflatten(0, (ranks, num_splits, -1)).transpose(0, 1).flatten(0, 2)
    return groups


def unshuffle(shuffled: Shaped[Tensor, "B *rest"], num_splits: int) -> Shaped[Tensor, "B *rest"]:
    """Bring what ``shuffle`` dealt out, or what was computed from it row by row, back to its place."""
    ranks = world_size()
    received = shuffled.unflatten(0, (num_splits, ranks, -1)).transpose(0, 1).flatten(0, 2)
    rows: Tensor = exchange(received).unflatten(0, (ranks, num_splits, -1)).movedim(2, 0).flatten(0, 2)
    return rows
