"""Features, linear evaluation and nearest neighbours, against scikit-learn and the definitions in loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from contrastive.evaluation import (
    Features,
    KNNClassifier,
    NotConvergedWarning,
    eval_mode,
    extract_features,
    gather_rows,
    linear_evaluation,
    stratified_split,
    sum_over_ranks,
)
from tests.ranks import Ranks


class Colours(Dataset[dict[str, Any]]):
    """Images of one colour each, made from their number; labels where asked for."""

    def __init__(self, count: int, labelled: bool = True) -> None:
        self.count = count
        self.labelled = labelled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        image = torch.tensor([number, 2 * number, 255 - number], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
        return {"image": image, "index": number} | ({"label": number % 3} if self.labelled else {})


def mean_colour(images: Tensor) -> Tensor:
    return images.float().mean((2, 3))


def expected_colours(count: int) -> Tensor:
    return torch.tensor([[n, 2 * n, 255 - n] for n in range(count)], dtype=torch.float32)


def features_of(features: Tensor, labels: Tensor | None = None) -> Features:
    return Features(features, labels, torch.arange(len(features)))


def blobs(count: int, num_classes: int = 6, width: int = 8, seed: int = 0, spread: float = 1.0) -> Features:
    """Gaussian classes; the centres are the same for every seed."""
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % num_classes
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return features_of(3 + 5 * (centres[labels] + spread * noise), labels)


# Extracting features


def test_features_come_in_the_order_of_the_images_numbers_whatever_the_loaders_order() -> None:
    loader = DataLoader(Colours(11), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    features = extract_features(mean_colour, loader, device="cpu")
    assert features.features.equal(expected_colours(11))
    assert features.index.equal(torch.arange(11))
    assert features.labels is not None
    assert features.labels.equal(torch.arange(11) % 3)
    assert len(features) == 11


def test_without_labels_features_have_none_and_labelled_says_what_is_missing() -> None:
    features = extract_features(mean_colour, DataLoader(Colours(5, labelled=False), batch_size=2), device="cpu")
    assert features.labels is None
    with pytest.raises(ValueError, match="None of the 5 images has a label"):
        features.labelled()


def test_labelled_leaves_images_with_a_negative_label_out() -> None:
    rows, labels = features_of(torch.eye(4), torch.tensor([2, -1, 0, -1])).labelled()
    assert rows.equal(torch.eye(4)[[0, 2]])
    assert labels.equal(torch.tensor([2, 0]))


def test_extracting_keeps_no_graph_and_converts_half_precision_to_float32() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    loader = DataLoader(Colours(3), batch_size=3)
    features = extract_features(lambda images: (mean_colour(images) @ weight).bfloat16(), loader, device="cpu")
    assert features.features.dtype == torch.float32
    assert not features.features.requires_grad


def extract_shard(count: int, sampled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    sampler = DistributedSampler(Colours(count), shuffle=True, seed=1) if sampled else None
    loader = DataLoader(Colours(count), batch_size=2, sampler=sampler)
    features = extract_features(mean_colour, loader, device="cpu")
    return features.features, features.index, features.labels


@pytest.mark.parametrize("sampled", [True, False], ids=["padded shards", "every rank reads all"])
def test_several_ranks_extract_each_image_once(three_ranks: Ranks, sampled: bool) -> None:
    for features, index, labels in three_ranks(extract_shard, 10, sampled):
        assert features.equal(expected_colours(10))
        assert index.equal(torch.arange(10))
        assert labels is not None
        assert labels.equal(torch.arange(10) % 3)


def extract_uneven(counts: list[int]) -> tuple[Tensor, Tensor | None]:
    start, count = sum(counts[: dist.get_rank()]), counts[dist.get_rank()]
    images = Colours(sum(counts))
    batches = [
        {key: torch.as_tensor(value)[None] for key, value in images[n].items()} for n in range(start, start + count)
    ]
    features = extract_features(mean_colour, batches, device="cpu")
    return features.features, features.labels


def test_ranks_may_have_shards_of_different_length_and_none_at_all(three_ranks: Ranks) -> None:
    for features, labels in three_ranks(extract_uneven, [3, 0, 1]):
        assert features.equal(expected_colours(4))
        assert labels is not None
        assert labels.equal(torch.arange(4) % 3)


def sums_and_rows(values: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    mine = torch.tensor(values[dist.get_rank()])
    total = sum_over_ranks(mine.sum())
    return total, gather_rows(mine), mine


def test_sums_and_gathered_rows_leave_their_argument_alone(two_ranks: Ranks) -> None:
    for rank, (total, rows, mine) in enumerate(two_ranks(sums_and_rows, [[1.0, 2.0], [4.0, 8.0, 16.0]])):
        assert float(total) == 31
        assert rows.tolist() == [1, 2, 4, 8, 16]
        assert mine.tolist() == [[1, 2], [4, 8, 16]][rank]


def test_one_loader_that_gives_a_number_twice_is_refused() -> None:
    batch = {"image": torch.zeros(3, 3, 2, 2, dtype=torch.uint8), "index": torch.tensor([4, 7, 4])}
    with pytest.raises(ValueError, match="each differently, but 4 comes twice"):
        extract_features(mean_colour, [batch], device="cpu")


@pytest.mark.usefixtures("without_type_checks")
def test_a_batch_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(TypeError, match="the loader gave list"):
        extract_features(mean_colour, [[torch.zeros(1), torch.zeros(1)]], device="cpu")


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="The loader gave no batch"):
        extract_features(mean_colour, [], device="cpu")


def test_labels_in_some_batches_only_are_refused() -> None:
    images = {"image": torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "index": torch.tensor([0])}
    with pytest.raises(ValueError, match="1 of 2 batches have a 'label'"):
        extract_features(mean_colour, [images | {"label": torch.tensor([1])}, images], device="cpu")


def test_eval_mode_gives_every_submodule_its_own_mode_back_even_after_an_error() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module.train()
    module[1][1].eval()  # a frozen layer
    before = [part.training for part in module.modules()]
    with eval_mode(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before
    with pytest.raises(ValueError, match="expected 2D"), eval_mode(module):
        module(torch.ones(2))
    assert [part.training for part in module.modules()] == before


# Linear evaluation


def test_linear_evaluation_is_the_same_done_with_scikit_learn() -> None:
    train, test = blobs(240, seed=1), blobs(120, seed=2)
    grid = [1e-1, 1e-2, 1e-3]
    result = linear_evaluation(train, test, l2=grid, tolerance=1e-6)

    assert train.labels is not None
    assert test.labels is not None
    held_out = stratified_split(train.labels, 0.1, seed=0).numpy()
    x, y = train.features.double().numpy(), train.labels.numpy()
    centred = x - x.mean(0)
    scale = math.sqrt((centred**2).mean())

    def fit(rows: Any, l2: float) -> LogisticRegression:
        model = LogisticRegression(C=1 / (l2 * rows.sum()), tol=1e-9, max_iter=10_000)
        return model.fit(centred[rows] / scale, y[rows])

    scores = {l2: fit(~held_out, l2).score(centred[held_out] / scale, y[held_out]) for l2 in grid}
    best = max(grid, key=lambda l2: (scores[l2], l2))
    final = fit(np.ones_like(held_out), best)
    logits = final.decision_function((test.features.double().numpy() - x.mean(0)) / scale)
    ranked = (-logits).argsort(1)
    assert result.held_out_top1 == pytest.approx(scores)
    assert result.l2 == best
    assert result.top1 == pytest.approx((ranked[:, 0] == test.labels.numpy()).mean())
    assert result.top5 == pytest.approx((ranked[:, :5] == test.labels.numpy()[:, None]).any(1).mean())
    assert (result.num_train, result.num_test, result.converged) == (240, 120, True)


def test_linear_evaluation_does_not_depend_on_the_scale_and_place_of_the_features() -> None:
    train, test = blobs(240, seed=1), blobs(120, seed=2)
    plain = linear_evaluation(train, test)
    moved = linear_evaluation(*(features_of(1000 * part.features - 70, part.labels) for part in (train, test)))
    assert (plain.top1, plain.l2) == (moved.top1, moved.l2)


def test_linear_evaluation_has_no_top5_for_five_classes() -> None:
    result = linear_evaluation(blobs(50, num_classes=5), blobs(50, num_classes=5, seed=1))
    assert result.top5 is None


def test_linear_evaluation_chooses_its_strength_without_the_test_labels() -> None:
    train, test = blobs(240, seed=1, spread=3.0), blobs(120, seed=2, spread=3.0)
    shuffled = Features(test.features, torch.zeros_like(test.index), test.index)
    honest, misled = linear_evaluation(train, test), linear_evaluation(train, shuffled)
    assert (honest.l2, honest.held_out_top1) == (misled.l2, misled.held_out_top1)


def test_linear_evaluation_leaves_unlabelled_images_out() -> None:
    train, test = blobs(60), blobs(60, seed=1)
    assert train.labels is not None
    labels = torch.where(train.index < 30, train.labels, -1)
    half = linear_evaluation(Features(train.features, labels, train.index), test)
    assert half.num_train == 30
    assert half.top1 == linear_evaluation(train.rows(train.index < 30), test).top1


def test_linear_evaluation_warns_where_it_stops_short() -> None:
    with pytest.warns(NotConvergedWarning, match=r"stopped short of the optimum at l2 in \[1e-06\].*max_iterations=15"):
        result = linear_evaluation(blobs(60), blobs(60, seed=1), l2=[1e-6, 1.0], max_iterations=15)
    assert not result.converged


def test_linear_evaluation_says_when_the_strength_lies_at_the_grids_edge() -> None:
    train, test = blobs(240, seed=1, spread=3.0), blobs(120, seed=2, spread=3.0)
    assert linear_evaluation(train, test, l2=[1e-6, 1e-5]).l2_at_edge
    assert not linear_evaluation(train, test, l2=[1e-1]).l2_at_edge


def test_a_test_label_that_training_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="label 5, but num_classes is 4"):
        linear_evaluation(blobs(60, num_classes=4), blobs(60, num_classes=6))


def test_a_tenth_of_every_class_is_held_out_and_never_all_of_one() -> None:
    labels = torch.tensor([0] * 40 + [1] * 14 + [2] * 2 + [3])[torch.randperm(57)]
    held_out = stratified_split(labels, 0.1, seed=3)
    assert torch.bincount(labels[held_out], minlength=4).tolist() == [4, 1, 1, 0]
    assert held_out.equal(stratified_split(labels, 0.1, seed=3))
    assert not held_out.equal(stratified_split(labels, 0.1, seed=4))


def test_holding_out_takes_two_images_of_some_class() -> None:
    with pytest.raises(ValueError, match="Each of the 4 labelled training images is alone in its class"):
        stratified_split(torch.arange(4), 0.1, seed=0)


# Nearest neighbours


def votes_by_loops(bank: Features, query: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Wu et al. 2018, section 3.4, one neighbour after the other, in float64."""
    assert bank.labels is not None
    neighbours = []
    for row, label in zip(bank.features.double(), bank.labels.tolist(), strict=True):
        neighbours.append((float(row @ query.double() / row.norm() / query.double().norm()), label))
    votes = torch.zeros(num_classes, dtype=torch.float64)
    for similarity, label in sorted(neighbours, reverse=True)[:k]:
        votes[label] += math.exp(similarity / temperature)
    return votes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (30, 0.5)])
def test_votes_are_those_of_the_definition(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrastive.evaluation.knn.BANK_PER_BLOCK", 7)
    monkeypatch.setattr("contrastive.evaluation.knn.QUERIES_PER_BLOCK", 4)
    bank, test = blobs(30, spread=2.0), blobs(10, seed=1, spread=2.0)
    votes = KNNClassifier(bank).votes(test.features, k=k, temperature=temperature)
    for query, row in zip(test.features, votes, strict=True):
        expected = votes_by_loops(bank, query, k, temperature, 6)
        torch.testing.assert_close(row.double() / row.sum(), expected / expected.sum(), rtol=1e-4, atol=1e-6)


def test_several_settings_in_one_pass_give_what_each_gives_alone() -> None:
    bank, test = blobs(60, spread=2.0), blobs(30, seed=1, spread=2.0)
    assert test.labels is not None
    results = KNNClassifier(bank).evaluate(test, k=[3, 20], temperature=[0.05, 1.0])
    assert [(r.k, r.temperature) for r in results] == [(3, 0.05), (3, 1.0), (20, 0.05), (20, 1.0)]
    for result in results:
        ranked = [
            votes_by_loops(bank, query, result.k, result.temperature, 6).argsort(descending=True, stable=True)
            for query in test.features
        ]
        top1 = np.mean([int(order[0]) == label for order, label in zip(ranked, test.labels.tolist(), strict=True)])
        assert result.top1 == pytest.approx(top1)
        assert result.top5 is not None
        assert result.top5 >= result.top1
        assert (result.num_bank, result.num_test) == (60, 30)


@pytest.mark.parametrize("temperature", [0.001, 1e-6])
def test_small_temperatures_overflow_nowhere_and_let_the_nearest_decide(temperature: float) -> None:
    bank, test = blobs(60), blobs(30, seed=1)
    classifier = KNNClassifier(bank)
    votes = classifier.votes(test.features, k=20, temperature=temperature)
    assert bool(votes.isfinite().all())
    assert votes.argmax(1).equal(classifier.neighbours(test.features, 1)[1][:, 0])


def test_unlabelled_images_do_not_vote() -> None:
    bank = features_of(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([-1, 1, 0]))
    classifier = KNNClassifier(bank)
    assert len(classifier) == 2
    assert classifier.votes(torch.tensor([[1.0, 0.0]]), k=1).argmax(1).item() == 1


def test_more_neighbours_than_the_bank_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 31 neighbours of a bank of 30 labelled images"):
        KNNClassifier(blobs(30)).votes(torch.ones(1, 8), k=31)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature = 0\.0 must be greater than 0"):
        KNNClassifier(blobs(30)).votes(torch.ones(1, 8), k=3, temperature=0.0)


def test_bank_labels_outside_of_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="label 5, but num_classes is 5"):
        KNNClassifier(blobs(30), num_classes=5)
