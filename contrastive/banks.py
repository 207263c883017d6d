"""The bank: all training images, unaugmented, as a run's data module gives them."""

from collections.abc import Iterable
from typing import Any


def bank_loader(trainer: Any, *, reader: str, otherwise: str = "") -> Iterable[Any]:
    """The ``bank_dataloader()`` of the data module that a run is trained on.

    Args:
        trainer: Lightning's.
        reader: Who needs it, for the message.
        otherwise: What can be done without such a data module, for the message: ", or ...".

    Raises:
        TypeError: There is no such data module.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "bank_dataloader"):
        got = "no data module" if data is None else f"a {type(data).__name__}, which has no bank_dataloader()"
        raise TypeError(
            f"{reader} needs the training images, unaugmented, but the trainer has {got}. Fit with a data module of "
            f"contrastive.data{otherwise}."
        )
    loader: Iterable[Any] = data.bank_dataloader()
    return loader
