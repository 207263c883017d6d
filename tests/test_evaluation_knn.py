"""Which neighbours are the nearest, to the last of equally similar ones, however the bank is cut up."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive.evaluation import Features, KNNClassifier, knn
from tests.ranks import Ranks

NUM_CLASSES = 7
WIDTH = 24


@pytest.fixture(params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    """Two or three real processes."""
    ranks: Ranks = request.getfixturevalue({2: "two_ranks", 3: "three_ranks"}[request.param])
    return ranks


def images(count: int, seed: int, *, duplicates: bool = False) -> Features:
    """Random features, numbered with gaps; with ``duplicates``, most are the same as another's, of any class."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=generator)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    index = torch.randperm(3 * count, generator=generator)[:count].sort().values
    if duplicates:
        features = features[torch.randint(max(1, count // 9), (count,), generator=generator)]
    return Features(features, labels, index)


def neighbours_by_sorting(bank: Features, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All of the bank, sorted by similarity and then by number, in float64."""
    assert bank.labels is not None
    unit = bank.features.double() / bank.features.double().norm(dim=1, keepdim=True)
    similarities, labels = [], []
    for query in queries.double():
        row = (unit * (query / query.norm())).sum(1).float().tolist()
        order = sorted(range(len(bank)), key=lambda place: (-row[place], int(bank.index[place])))[:k]
        similarities.append([row[place] for place in order])
        labels.append([int(bank.labels[place]) for place in order])
    return torch.tensor(similarities), torch.tensor(labels)


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("k", [1, 9, 120])
def test_neighbours_are_those_of_sorting_everything(k: int, duplicates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = images(120, 0, duplicates=duplicates), images(13, 1).features
    expected, expected_labels = neighbours_by_sorting(bank, queries, k)
    for spare, per_block in ((2, 50), (64, 1000)):
        monkeypatch.setattr(knn, "SPARE", spare)
        monkeypatch.setattr(knn, "BANK_PER_BLOCK", per_block)
        similarities, labels = KNNClassifier(bank).neighbours(queries, k)
        torch.testing.assert_close(similarities, expected, rtol=1e-6, atol=1e-6)
        assert labels.equal(expected_labels)


def test_of_images_that_are_all_the_same_the_first_numbers_vote() -> None:
    bank = images(300, 0)
    same = Features(bank.features[:1].expand(300, -1), bank.labels, bank.index)
    shuffled = same.rows(torch.randperm(300, generator=torch.Generator().manual_seed(1)))
    assert bank.labels is not None
    for given in (same, shuffled):
        _, labels = KNNClassifier(given).neighbours(images(4, 1).features, 50)
        assert labels.equal(bank.labels[:50].expand(4, -1))


def test_neighbours_do_not_depend_on_which_queries_are_asked_together() -> None:
    bank, queries = images(5000, 0), images(40, 1).features
    classifier = KNNClassifier(bank)
    together, labels = classifier.neighbours(queries, 30)
    for number, query in enumerate(queries):
        alone, own_labels = classifier.neighbours(query[None], 30)
        assert alone[0].equal(together[number])
        assert own_labels[0].equal(labels[number])


def test_an_imprecise_matrix_product_changes_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TensorFloat32 does to a product, this does more to it."""

    def blunted(self: KNNClassifier, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        rough = (rows @ self.features.mT * 50).round() / 50
        best: tuple[Tensor, Tensor] = rough.topk(width, dim=1)
        return best

    bank, queries = images(4000, 0), images(20, 1).features
    expected, expected_labels = neighbours_by_sorting(bank, queries, 10)
    monkeypatch.setattr(knn, "SPARE", 4)
    monkeypatch.setattr(KNNClassifier, "_candidates", blunted)
    similarities, labels = KNNClassifier(bank).neighbours(queries, 10)
    torch.testing.assert_close(similarities, expected, rtol=1e-6, atol=1e-6)
    assert labels.equal(expected_labels)


def test_classes_with_equal_votes_tie_whoever_voted_first() -> None:
    votes = torch.rand(50, 100, generator=torch.Generator().manual_seed(0))
    similarities = torch.cat([votes, votes.flip(1)], dim=1)
    labels = torch.arange(2).repeat_interleave(100).expand(50, -1)
    counted = KNNClassifier(images(20, 0)).count(similarities, labels, temperature=0.07)
    assert counted[:, 0].equal(counted[:, 1])


# Several ranks


def shard(images: Features, rank: int, owners: Sequence[int]) -> Features:
    return images.rows(torch.tensor([owner == rank for owner in owners]))


def asked_on_ranks(
    bank: Features, test: Features, bank_owners: Sequence[int], test_owners: Sequence[int], sizes: Sequence[int]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, list[tuple[float, ...]]]:
    """What this rank finds for its own queries; in blocks of few, so that ranks run out of them at different times."""
    rank = torch.distributed.get_rank()
    own = shard(test, rank, test_owners)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "QUERIES_PER_BLOCK", 8)
        patch.setattr(knn, "BANK_PER_BLOCK", 20)
        classifier = KNNClassifier(shard(bank, rank, bank_owners), over_ranks=True)
        found = [classifier.neighbours(own.features, k) for k in sizes]
        votes = classifier.votes(own.features, k=9)
        results = classifier.evaluate(own, k=sizes, temperature=[0.07, 0.5])
    return found, votes, [(r.k, r.temperature, r.top1, r.top5 or 0.0, r.num_bank, r.num_test) for r in results]


def in_turn(count: int, world_size: int) -> list[int]:
    return [number % world_size for number in range(count)]


def all_on_the_last(count: int, world_size: int) -> list[int]:
    return [world_size - 1] * count


def at_random(count: int, world_size: int) -> list[int]:
    shares = [0.1, *[0.9 / (world_size - 1)] * (world_size - 1)]
    owners: list[int] = np.random.default_rng(0).choice(world_size, count, p=shares).tolist()
    return owners


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize(
    ("bank_owners", "test_owners"),
    [(in_turn, in_turn), (at_random, at_random), (all_on_the_last, in_turn), (in_turn, all_on_the_last)],
)
def test_a_bank_over_ranks_answers_as_one_process_does(
    ranks: Ranks,
    duplicates: bool,
    bank_owners: Callable[[int, int], list[int]],
    test_owners: Callable[[int, int], list[int]],
) -> None:
    bank, test = images(71, 0, duplicates=duplicates), images(37, 1)
    test = Features(test.features, test.labels, test.index)
    sizes = (1, 9, 40, 71)  # up to more than a rank has
    world_size = len(ranks.processes)
    owners = test_owners(37, world_size)
    alone = KNNClassifier(bank)
    expected = [alone.neighbours(test.features, k) for k in sizes]
    votes = alone.votes(test.features, k=9)
    results = [
        (r.k, r.temperature, r.top1, r.top5, r.num_bank, r.num_test)
        for r in alone.evaluate(test, k=sizes, temperature=[0.07, 0.5])
    ]
    answers = ranks(asked_on_ranks, bank, test, bank_owners(71, world_size), owners, sizes)
    for rank, (found, own_votes, own_results) in enumerate(answers):
        mine = torch.tensor([owner == rank for owner in owners])
        for (similarities, labels), (all_similarities, all_labels) in zip(found, expected, strict=True):
            assert similarities.equal(all_similarities[mine])
            assert labels.equal(all_labels[mine])
        assert own_votes.equal(votes[mine])
        assert own_results == results


def refused_on_ranks(bank: Features, test: Features, same_bank: bool) -> str:
    rank = torch.distributed.get_rank()
    owners = in_turn(len(bank), torch.distributed.get_world_size())
    with pytest.raises(ValueError, match="is on several ranks") as refusal:
        KNNClassifier(bank if same_bank else shard(bank, rank, owners), over_ranks=True).evaluate(test)
    return str(refusal.value)


@pytest.mark.parametrize("same_bank", [False, True])
def test_an_image_that_several_ranks_hold_is_refused(two_ranks: Ranks, same_bank: bool) -> None:
    bank, test = images(30, 0), images(5, 1)
    role, first = ("bank", bank.index[0]) if same_bank else ("test set", test.index[0])
    for message in two_ranks(refused_on_ranks, bank, test, same_bank):
        assert f"Image {int(first)} of the {role} is on several ranks" in message
        assert "gather=False" in message


def unlabelled_on_ranks() -> None:
    bank = images(10, torch.distributed.get_rank())
    with pytest.raises(ValueError, match="None of the 10 images has a label"):
        KNNClassifier(Features(bank.features, None, bank.index), over_ranks=True)


def test_ranks_without_any_label_all_refuse(two_ranks: Ranks) -> None:
    two_ranks(unlabelled_on_ranks)
