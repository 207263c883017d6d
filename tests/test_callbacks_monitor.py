"""The representation monitor's numbers, and its one warning."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrastive.callbacks import CollapseWarning, RepresentationMonitor
from tests.watched import WIDTH, Anybodys, PictureData, Seen, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)


def by_definition(features: Tensor) -> dict[str, float]:
    """Every measure of two views, [2B, D], written out in float64."""
    rows = nn.functional.normalize(features.double(), dim=1)
    first, second = rows.chunk(2)
    singular_values = torch.linalg.svdvals(features.double())
    shares = (singular_values / singular_values.sum()).tolist()
    uniformities = [torch.pdist(view).square().mul(-2).exp().mean().log() for view in (first, second)]
    return {
        "feature_std": float(rows.std(0).mean()) * WIDTH**0.5,
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares)),
        "alignment": float((first - second).square().sum(1).mean()),
        "uniformity": float(sum(uniformities)) / 2,
        "num_rows": len(features),
    }


def test_logged_values_are_the_epochs_means_of_the_definitions() -> None:
    seen = Seen()
    trainer = quiet([RepresentationMonitor(every_n_steps=4), seen], max_epochs=2)
    trainer.fit(Anybodys(), PictureData())
    measured = [by_definition(seen.train[6 + step]["features"]) for step in (0, 4)]  # of the second epoch's 6 batches
    for key in measured[0]:
        expected = sum(values[key] for values in measured) / 2
        assert float(trainer.callback_metrics[f"collapse/{key}"]) == pytest.approx(expected, rel=1e-4), key


class SameViews(Anybodys):
    """Every view is the image's own row of ``rows``."""

    num_views = 3
    rows = torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(0))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"features": self.rows[batch["index"]].repeat(self.num_views, 1)}


def test_views_of_an_image_that_agree_are_aligned() -> None:
    trainer = quiet([RepresentationMonitor()])
    trainer.fit(SameViews(), PictureData())
    assert float(trainer.callback_metrics["collapse/alignment"]) == pytest.approx(0, abs=1e-6)
    assert float(trainer.callback_metrics["collapse/feature_std"]) > 0.8
    assert int(trainer.callback_metrics["collapse/num_rows"]) == 24


def test_one_view_has_no_alignment() -> None:
    class OneView(SameViews):
        num_views = 1

    trainer = quiet([RepresentationMonitor()])
    trainer.fit(OneView(), PictureData())
    assert "collapse/alignment" not in trainer.callback_metrics
    assert "collapse/uniformity" in trainer.callback_metrics


class Collapsed(SameViews):
    rows = 5 + 1e-4 * SameViews.rows


def test_collapse_is_warned_of_once_a_run() -> None:
    monitor = RepresentationMonitor(every_n_steps=1)
    for _ in range(2):
        with pytest.warns(CollapseWarning, match=r"Features have collapsed: at step 1 .* over 8 images") as caught:
            quiet([monitor]).fit(Collapsed(), PictureData())
        assert len([w for w in caught if issubclass(w.category, CollapseWarning)]) == 1


class CollapsedBehindBatchNorm(SameViews):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"projections": 3 + 1e-3 * outputs["features"][:8]}


def test_projections_are_watched_where_they_are_returned() -> None:
    trainer = quiet([RepresentationMonitor(every_n_steps=1)])
    with pytest.warns(CollapseWarning, match="Projections have collapsed"):
        trainer.fit(CollapsedBehindBatchNorm(), PictureData())
    assert float(trainer.callback_metrics["collapse/projection_std"]) < 0.01
    assert float(trainer.callback_metrics["collapse/feature_std"]) > 0.8


def test_an_untrained_encoder_is_no_collapse() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        quiet([RepresentationMonitor(every_n_steps=1)]).fit(Anybodys(), PictureData())


def test_overflown_rows_are_left_out_and_one_image_is_too_few() -> None:
    class Overflows(SameViews):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
            outputs = super().training_step(batch, batch_idx)
            features = outputs["features"].clone()
            features[8] = torch.inf  # the second view of the first image
            return outputs | {"features": features if batch_idx else torch.full_like(features, torch.nan)}

    trainer = quiet([RepresentationMonitor(every_n_steps=5)])
    trainer.fit(Overflows(), PictureData())
    assert int(trainer.callback_metrics["collapse/num_rows"]) == 21
    assert float(trainer.callback_metrics["collapse/alignment"]) == pytest.approx(0, abs=1e-6)
