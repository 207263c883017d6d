"""Clusters, retrieval and label-free measures as protocols, on features whose answers are known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from contrastive.evaluation import alignment, cluster, lidar, rankme, retrieval
from contrastive.evaluation.protocols.unsupervised import CLUSTER, LABEL_FREE, RETRIEVAL
from tests.protocol_task import ClusterTask


def test_clusters_of_the_test_images_alone_are_scored() -> None:
    task = ClusterTask(num_test=120, spread=0.8)
    found = CLUSTER.evaluate(task, seed=3)
    expected = cluster(task.features("val"), num_clusters=6, restarts=10, seed=3)
    assert found.scores == {"accuracy": expected.accuracy, "nmi": expected.nmi, "ari": expected.ari}
    assert (found.num_train, found.num_test) == (0, 120)
    assert found.details["num_clusters"] == 6
    del task.splits["train"]
    assert CLUSTER.evaluate(task, seed=3).scores == found.scores


def test_well_separated_classes_are_found_and_retrieved() -> None:
    task = ClusterTask(num_train=120, num_test=60, spread=0.01)
    assert CLUSTER.evaluate(task).scores == pytest.approx({"accuracy": 1.0, "nmi": 1.0, "ari": 1.0})
    assert set(RETRIEVAL.evaluate(task).scores.values()) == {1.0}


def test_test_images_look_for_training_images() -> None:
    task = ClusterTask(num_train=120, num_test=60, spread=1.5)
    found = RETRIEVAL.evaluate(task)
    expected = retrieval(task.features("val"), task.features("train"))
    assert list(found.scores) == [
        "recall at 1",
        "recall at 5",
        "recall at 10",
        "mean_average_precision",
        "r_precision",
        "map_at_r",
    ]
    assert list(found.scores.values()) == [
        *expected.recall.values(),
        expected.mean_average_precision,
        expected.r_precision,
        expected.map_at_r,
    ]
    assert 0 < found.scores["map_at_r"] < found.scores["recall at 1"] < 1
    assert (found.num_train, found.num_test) == (120, 60)
    # By hand: the nearest training image of each test image, whose class is the recall at 1.
    train, test = task.features("train"), task.features("val")
    assert train.labels is not None
    nearest = (F.normalize(test.features, dim=1) @ F.normalize(train.features, dim=1).T).argmax(1)
    assert found.scores["recall at 1"] == pytest.approx(float((train.labels[nearest] == test.labels).double().mean()))


def test_label_free_measures_are_of_the_test_images_and_say_how_many() -> None:
    task = ClusterTask(num_train=130, num_test=50)
    found = replace(LABEL_FREE, num_views=0).evaluate(task)
    assert list(found.scores) == ["rankme", "effective_rank", "alpha_req", "uniformity", "feature_std"]
    assert found.scores["rankme"] == float(rankme(task.features("val").features))
    assert (found.num_train, found.num_test) == (0, 50)
    assert found.details["n_of_rankme"] == 50
    assert task.encoded == 0


def test_views_are_those_of_the_same_image_in_every_place() -> None:
    task = ClusterTask(num_train=130, noise=0.0)
    views = replace(LABEL_FREE, num_views=4, num_images=70, batch_size=32).views(task, 0, None)
    assert views.shape == (4, 70, 8)
    rows = task.features("train").features
    for view in views:
        assert view.equal(views[0])  # without noise, all views of an image are the image
        assert bool((view[:, None] == rows).all(2).any(1).all())
    assert len(views[0].unique(dim=0)) == 70


def test_images_that_an_epoch_left_out_are_left_out_of_all_views() -> None:
    task = ClusterTask(num_train=131, noise=0.0)  # a prime: every batch size leaves some out
    views = replace(LABEL_FREE, num_views=6, num_images=1000, batch_size=40).views(task, 0, None)
    assert 60 < views.shape[1] < 131
    assert all(view.equal(views[0]) for view in views)


def test_lidar_counts_the_directions_in_which_images_differ_from_one_another() -> None:
    """Images differ in 3 of 8 dimensions, their views in all of them but little."""
    task = ClusterTask(num_train=400, width=8, noise=0.01)
    train = task.features("train")
    signal = F.pad(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), (0, 5))
    task.splits["train"] = replace(train, features=signal)
    found = LABEL_FREE.evaluate(task)
    assert found.scores["lidar"] == pytest.approx(3, abs=0.1)
    # Two draws of noise of variance 1e-4 in 8 dimensions, at points of length about sqrt(3).
    assert 0 < found.scores["alignment"] < 2 * 8e-4
    assert found.details["views_of_lidar"] == 10
    assert found.details["n_of_lidar"] == found.num_train > 300


def test_views_and_their_measures_are_those_of_the_functions() -> None:
    task = ClusterTask(num_train=128)
    protocol = replace(LABEL_FREE, num_views=3, num_images=50)
    views = protocol.views(task, 5, None)
    found = protocol.evaluate(task, seed=5)
    assert found.scores["lidar"] == float(lidar(views))
    assert found.scores["alignment"] == float(alignment(views))
    assert found.scores["lidar"] != protocol.evaluate(task, seed=6).scores["lidar"]


def test_no_more_images_are_encoded_than_it_takes() -> None:
    task = ClusterTask(num_train=1024)
    replace(LABEL_FREE, num_views=2, num_images=32, batch_size=32).evaluate(task)
    assert task.encoded < 2 * 1024


def test_features_that_are_no_numbers_are_refused() -> None:
    task = ClusterTask()
    task.splits["val"].features[3, 2] = torch.nan
    for protocol in (CLUSTER, RETRIEVAL, LABEL_FREE):
        with pytest.raises(ValueError, match="1 of 30 feature vectors hold infinities or NaN"):
            protocol.evaluate(task)


def test_progress_tells_of_views() -> None:
    told: list[tuple[str, int, int]] = []
    replace(LABEL_FREE, num_views=3).evaluate(ClusterTask(), progress=lambda *what: told.append(what))
    assert told == [("views", done, 3) for done in range(4)]
