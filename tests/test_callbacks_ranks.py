"""Callbacks under DistributedDataParallel, on real processes: exact counts, equal ranks, an untouched encoder."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.evaluation import effective_rank, feature_std
from tests.ranks import Ranks
from tests.watched import Anybodys, PictureData, Seen, as_torchrun, quiet

NUM_VAL = 21  # on two ranks the sampler pads it to 22


def fit(folder: Path | None, hidden: frozenset[str], watched: bool) -> dict[str, Any]:
    """Train on this rank, with Lightning's own DistributedSampler."""
    as_torchrun()
    pl.seed_everything(0, verbose=False)
    probe, seen = LinearProbe(6, data=PictureData(train=30, val=(20,), seed=7)), Seen()
    callbacks = [probe, KNNProbe(k=5), RepresentationMonitor(every_n_steps=100)] if watched else []
    checkpoint = ModelCheckpoint(folder, monitor="linear_probe/top1", mode="max") if watched and folder else None
    module = Anybodys(hidden=hidden)
    trainer = quiet(
        [*callbacks, seen, *([checkpoint] if checkpoint else [])],
        strategy="ddp",
        devices=dist.get_world_size(),
        enable_checkpointing=checkpoint is not None,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, PictureData(val=(NUM_VAL,)))
    return {
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "probe": probe.state_dict(),
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "first features of the last epoch": seen.train[len(seen.train) // 2]["features"] if watched else None,
        "warnings": [str(warning.message) for warning in caught],
        "best checkpoint": checkpoint.best_model_path if checkpoint else None,
    }


def features_of(state: dict[str, Tensor], images: Tensor) -> Tensor:
    module = Anybodys()
    module.load_state_dict(state)
    with torch.no_grad():
        return module.eval()(images)


@pytest.mark.parametrize("hidden", [frozenset(), frozenset({"index"})], ids=["index", "no index"])
def test_two_ranks_count_exactly_and_agree_and_leave_the_encoder_alone(
    two_ranks: Ranks, tmp_path: Path, hidden: frozenset[str]
) -> None:
    results = two_ranks(fit, tmp_path, hidden, True)
    first, second = results
    assert first["metrics"] == second["metrics"]
    assert first["best checkpoint"] == second["best checkpoint"] != ""
    for key, value in first["probe"].items():
        assert value.equal(second["probe"][key]), key
    assert not [message for result in results for message in result["warnings"] if "sync_dist" in message]

    data, probe = PictureData(val=(NUM_VAL,)), first["probe"]
    images, labels = data.val[0].images, data.val[0].labels
    # Running statistics of BatchNorm are a rank's own under DDP: each rank scores its images with its own encoder.
    features = torch.empty(NUM_VAL, 10)
    for rank, result in enumerate(results):
        features[rank::2] = features_of(result["module"], images[rank::2])
    standard = (features - probe["mean"]) / (probe["variance"] + 1e-5).sqrt()
    weight = probe["weights"][int(probe["accuracy"].argmax())]
    right = int(((standard @ weight[:, :-1].T + weight[:, -1]).argmax(1) == labels).sum())
    assert 0 < right < NUM_VAL
    assert first["metrics"]["linear_probe/top1"] == pytest.approx(right / NUM_VAL)
    assert round(first["metrics"]["knn/top1"] * NUM_VAL, 4) % 1 == 0
    assert "linear_probe/transfer_top1" in first["metrics"]

    batch = torch.cat([result["first features of the last epoch"] for result in results])
    assert first["metrics"]["collapse/num_rows"] == len(batch) == 32
    assert first["metrics"]["collapse/feature_std"] == pytest.approx(float(feature_std(batch)), rel=1e-4)
    assert first["metrics"]["collapse/effective_rank"] == pytest.approx(float(effective_rank(batch)), rel=1e-4)

    for result, plain in zip(results, two_ranks(fit, None, hidden, False), strict=True):
        for name, value in plain["module"].items():
            assert value.equal(result["module"][name]), name
