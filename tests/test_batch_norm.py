"""BatchNorm in groups: one device behaves as several, and no key keeps its query's company."""

import pytest
import torch
from torch import nn

from contrastive.batch_norm import SplitBatchNorm2d, shuffle, split_batch_norm_, unshuffle
from tests.ranks import Ranks


def images(num_images: int = 8) -> torch.Tensor:
    return torch.randn(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_each_group_is_normalised_as_on_a_device_of_its_own() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3)).double()
    split_batch_norm_(network, 4)
    alone = [nn.BatchNorm2d(3).double() for _ in range(4)]
    expected = torch.cat([norm(group) for norm, group in zip(alone, images().chunk(4), strict=True)])
    torch.testing.assert_close(network(images()), expected)
    split = network[0]
    torch.testing.assert_close(split.running_mean, torch.stack([n.running_mean for n in alone]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([n.running_var for n in alone]).mean(0))
    assert split.num_batches_tracked == 1


def test_evaluation_uses_the_running_statistics_undivided() -> None:
    plain = nn.BatchNorm2d(3).double()
    plain(images())
    network = nn.Sequential(plain).eval()
    expected = plain.eval()(images(6))
    split_batch_norm_(network, 4)
    assert network.eval()(images(6)).equal(expected)


def test_replacing_keeps_parameters_state_and_names() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)))
    network(torch.randn(8, 3, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    split_batch_norm_(network, 2)
    split = network[1][0]
    assert isinstance(split, SplitBatchNorm2d)
    assert (split.eps, split.momentum, split.num_splits) == (1e-3, 0.2, 2)
    assert before.keys() == network.state_dict().keys()
    assert all(before[name].equal(value) for name, value in network.state_dict().items())


def test_a_batch_that_the_groups_do_not_divide_is_refused() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3)).double()
    split_batch_norm_(network, 3)
    with pytest.raises(ValueError, match=r"needs a batch that 3 divides, got 8\. Change batch_size or batch_norm"):
        network(images())


def test_an_unknown_kind_of_batch_norm_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match="'0' is a Odd, not a plain BatchNorm2d"):
        split_batch_norm_(nn.Sequential(Odd(3)), 2)


@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_unshuffle_undoes_shuffle(num_splits: int) -> None:
    rows = torch.arange(16)[:, None]
    assert unshuffle(shuffle(rows, num_splits), num_splits).equal(rows)


def test_two_groups_before_and_after_share_as_few_images_as_can_be() -> None:
    before = torch.arange(32).chunk(4)
    after = shuffle(torch.arange(32), 4).chunk(4)
    shared = {len(set(b.tolist()) & set(a.tolist())) for b in before for a in after}
    assert shared == {2}  # 8 images a group, dealt out over 4 groups


def test_groups_that_do_not_divide_the_batch_cannot_be_dealt_out() -> None:
    with pytest.raises(ValueError, match=r"A batch of 10 images a rank cannot be dealt out over 4 groups"):
        shuffle(torch.arange(10), 4)


def dealt_out_and_back(num_splits: int) -> tuple[list[int], list[int]]:
    rows = torch.arange(12) + 12 * torch.distributed.get_rank()
    shuffled = shuffle(rows, num_splits)
    return shuffled.tolist(), unshuffle(shuffled, num_splits).tolist()


@pytest.mark.parametrize("num_splits", [1, 2])
def test_ranks_swap_images_and_get_their_own_back(three_ranks: Ranks, num_splits: int) -> None:
    results = three_ranks(dealt_out_and_back, num_splits)
    everything = sorted(row for shuffled, _ in results for row in shuffled)
    assert everything == list(range(36))
    for rank, (shuffled, back) in enumerate(results):
        assert back == list(range(12 * rank, 12 * rank + 12))
        for group in torch.tensor(shuffled).chunk(num_splits):
            origin = (group // 12).bincount(minlength=3).tolist()
            assert origin == [4 // num_splits] * 3  # every group has as many images from every rank
