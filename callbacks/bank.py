"""The labelled training images, unaugmented, that classifiers are fitted on before a validation."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from contrastive import banks
from contrastive.callbacks.batches import images_of, index_of
from contrastive.callbacks.layer import Layer
from contrastive.callbacks.places import Places
from contrastive.evaluation import Features, eval_mode, extract_features, gather_rows, sum_over_ranks


def bank_loader(trainer: pl.Trainer, bank: Iterable[Any] | None, *, reader: str) -> Iterable[Any]:
    """``bank``, or else the ``bank_dataloader()`` of the data module the run is trained on.

    Raises:
        TypeError: There is neither.
    """
    if bank is not None:
        return bank
    return banks.bank_loader(trainer, reader=reader, otherwise=f", or pass {reader}(bank=a loader of them)")


def frozen_features(
    trainer: pl.Trainer, module: pl.LightningModule, loader: Any, *, layer: Layer | None = None, gather: bool = True
) -> Features:
    """Features of a loader's images by the module as it stands: in evaluation mode and the run's precision, every
    module's mode and the global random state (from which an ordinary DataLoader draws) left as found.

    Args:
        trainer: Whose run it is.
        module: ``module(images)`` gives the features, or has ``layer`` return them.
        loader: Labelled images, in batches as ``contrastive.data`` gives them, or with ``layer`` as anybody does.
        layer: Where the features are, if ``module(images)`` does not give them.
        gather: See ``extract_features``.
    """
    with isolate_rng(), eval_mode(module), trainer.precision_plugin.forward_context():
        if layer is None:
            return extract_features(module, interruptible(trainer, loader), device=module.device, gather=gather)
        batches = _mappings(trainer, loader, layer)
        return extract_features(partial(layer.encode, module), batches, device=module.device, gather=gather)


def interruptible(trainer: pl.Trainer, batches: Iterable[Any]) -> Iterable[Any]:
    """The batches, as callbacks with a method ``between_batches`` have them: a run may be stopped there."""
    for callback in getattr(trainer, "callbacks", ()):  # which Lightning adds later than its types can tell
        between = getattr(callback, "between_batches", None)
        batches = batches if between is None else between(trainer, batches)
    return batches


def bank_features(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    bank: Iterable[Any] | None,
    *,
    reader: str,
    name: str,
    layer: Layer | None,
    gather: bool = True,
) -> Features | None:
    """Features of the bank by the module as it stands; None where some are not finite, and a warning says so.

    Args:
        trainer: Whose run it is.
        module: See ``frozen_features``.
        bank: See ``bank_loader``.
        reader: The callback's class, for the error.
        name: The callback's name, for the warning.
        layer: See ``frozen_features``.
        gather: See ``extract_features``.
    """
    features = frozen_features(trainer, module, bank_loader(trainer, bank, reader=reader), layer=layer, gather=gather)
    return features if are_finite(features, name, trainer.current_epoch) else None


def num_classes_of(trainer: pl.Trainer, bank: Features) -> int:
    """What the data module says, or else the largest label of any rank + 1."""
    told = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
    if isinstance(told, int):
        return told
    largest = bank.index.new_zeros(1) if bank.labels is None or not len(bank) else bank.labels.max()[None]
    return int(gather_rows(largest).max()) + 1


def are_finite(bank: Features, name: str, epoch: int) -> bool:
    """Whether all features of all ranks are numbers; a warning says that ``name`` was not measured, if not."""
    broken = int(sum_over_ranks((~bank.features.isfinite()).sum()))
    if broken:
        rank_zero_warn(f"{name} was not measured in epoch {epoch}: features are not finite.")
    return not broken


def _mappings(trainer: pl.Trainer, loader: Any, layer: Layer) -> Iterator[dict[str, Any]]:
    """Anybody's batches, moved as the trainer moves them, as ``extract_features`` takes them."""
    places = Places(loader)
    order = torch.zeros(2, dtype=torch.int64, device=trainer.strategy.root_device)  # images; which label stands where
    for batch in interruptible(trainer, loader):
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        labels, index = layer.labels_of(batch), index_of(batch)
        place, _ = places.next(len(labels), labels.device)
        if index is None:
            order += torch.stack([place.new_tensor(len(place)), (labels * (place + 1)).sum()])
        yield {"image": images_of(batch), "label": labels, "index": place if index is None else index}
    if not places.are_over_ranks:
        _check_same_order(order)


def _check_same_order(order: Tensor) -> None:
    """Ranks that all read everything must do so in one order, or the places of images mean nothing.

    Raises:
        ValueError: They do not.
    """
    if len(gather_rows(order[None]).unique(dim=0)) > 1:
        raise ValueError(
            "The ranks' banks differ, and their batches have no 'index' that would tell the images apart. Read the "
            "bank unshuffled and whole on every rank, or give its loader torch's DistributedSampler, or an 'index'."
        )
