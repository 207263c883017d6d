"""Samplers: each image exactly once, in an order that only seed and epoch decide."""

import pytest
import torch
from torch.utils.data import DistributedSampler

from contrastive.data.samplers import ExactSampler, TrainSampler, even_batch_size


def global_batches(
    num_images: int, batch_size: int, world_size: int, *, seed: int = 0, epoch: int = 0
) -> list[set[int]]:
    """What all ranks together see in each step."""
    shards = []
    for rank in range(world_size):
        sampler = TrainSampler(num_images, batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        shard = list(sampler)
        assert len(shard) == len(sampler)
        shards.append(shard)
    steps = len(shards[0]) // batch_size
    return [
        {image for shard in shards for image in shard[step * batch_size : (step + 1) * batch_size]}
        for step in range(steps)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_sees_each_image_at_most_once_and_drops_less_than_a_global_batch(world_size: int) -> None:
    batches = global_batches(103, 5, world_size)
    seen = [image for batch in batches for image in batch]
    assert len(seen) == len(set(seen)) == 103 // (5 * world_size) * 5 * world_size
    assert all(len(batch) == 5 * world_size for batch in batches)
    assert set(seen) <= set(range(103))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_global_batches_are_the_same_for_any_number_of_ranks(world_size: int) -> None:
    assert global_batches(100, 24 // world_size, world_size, seed=7, epoch=3) == global_batches(
        100, 24, 1, seed=7, epoch=3
    )


def test_order_differs_between_epochs_and_seeds_and_their_sum_does_not_decide_it() -> None:
    orders = {(seed, epoch): tuple(map(tuple, ordered(seed, epoch))) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16


def ordered(seed: int, epoch: int) -> list[list[int]]:
    sampler = TrainSampler(50, 5, seed=seed)
    sampler.set_epoch(epoch)
    images = list(sampler)
    return [images[k : k + 5] for k in range(0, 50, 5)]


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    sampler = TrainSampler(50, 5, seed=2)
    sampler.set_epoch(4)
    first = list(sampler)
    torch.rand(3)
    sampler.set_epoch(1)
    list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == first


def test_every_image_leads_every_place_equally_often() -> None:
    places = torch.zeros(10, 10)
    for epoch in range(2000):
        sampler = TrainSampler(10, 2, seed=5)
        sampler.set_epoch(epoch)
        places[torch.arange(10), torch.tensor(list(sampler))] += 1
    expected = 200.0
    chi_squared = ((places - expected) ** 2 / expected).sum().item()  # 81 degrees of freedom
    assert chi_squared < 81 + 5 * (2 * 81) ** 0.5


def test_samplers_are_distributed_samplers_so_that_lightning_keeps_them() -> None:
    assert isinstance(TrainSampler(10, 2), DistributedSampler)
    assert isinstance(ExactSampler(10), DistributedSampler)


def test_sampler_goes_on_inside_an_epoch_with_the_images_not_yet_served_on_another_number_of_ranks() -> None:
    whole = TrainSampler(40, 8, seed=1)
    whole.set_epoch(2)
    whole.begin()
    order = list(whole)
    for _ in range(2):
        whole.count_batch()
    rest = []
    for rank in range(2):
        sampler = TrainSampler(40, 4, seed=1, rank=rank, world_size=2)
        sampler.load_state_dict(whole.state_dict())
        sampler.set_epoch(2)
        sampler.begin()
        rest += list(sampler)
    assert sorted(rest) == sorted(order[16:])


def test_a_state_of_another_epoch_changes_nothing() -> None:
    sampler = TrainSampler(40, 8)
    sampler.load_state_dict({"epoch": 1, "images": 16})
    sampler.set_epoch(2)
    sampler.begin()
    assert len(list(sampler)) == 40


@pytest.mark.parametrize("num_images", [4, 5, 9, 10, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_validation_sees_each_image_exactly_once_over_all_ranks(num_images: int, world_size: int) -> None:
    shards = [list(ExactSampler(num_images, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [image for shard in shards for image in shard] == list(range(num_images))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert [len(ExactSampler(num_images, rank=rank, world_size=world_size)) for rank in range(world_size)] == [
        len(shard) for shard in shards
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_rank_gets_equally_many_validation_batches(world_size: int, batch_size: int) -> None:
    for num_images in range(world_size, 80):
        even = even_batch_size(num_images, batch_size, world_size)
        shards = [len(ExactSampler(num_images, rank=rank, world_size=world_size)) for rank in range(world_size)]
        assert len({-(-shard // even) for shard in shards}) == 1
        assert even >= batch_size


def test_batch_size_stays_as_asked_where_ranks_agree_anyway() -> None:
    assert even_batch_size(10_000, 512, 8) == 512
    assert even_batch_size(10_001, 512, 8) == 512
    assert even_batch_size(1025, 512, 2) == 513


def test_fewer_images_than_one_global_batch_says_what_fits() -> None:
    with pytest.raises(
        ValueError,
        match=r"There are 50 training images, fewer than one global batch of 64 \(4 ranks x batch_size=16\), "
        r"so an epoch would have no step at all. Set batch_size to 12 or less, or give more images.",
    ):
        TrainSampler(50, 16, world_size=4)


def test_fewer_validation_images_than_ranks_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"There are 2 validation images for 3 ranks, and every rank needs at least one."
    ):
        ExactSampler(2, world_size=3)


def test_impossible_batch_size_and_seed_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, but is 0"):
        TrainSampler(10, 0)
    with pytest.raises(ValueError, match="seed must be 0 or more, but is -1"):
        TrainSampler(10, 2, seed=-1)


def test_no_images_are_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match=r"There are no training images at all, so there is nothing to train on\."):
        TrainSampler(0, 4)
    with pytest.raises(ValueError, match="There are 0 training images for 1 ranks, and every rank needs at least one"):
        ExactSampler(0, what="training")
