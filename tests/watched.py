"""Somebody's own LightningModule and data, which know nothing of this package: what callbacks must work on.

Both draw from the global random state wherever they can, so that a callback that moves it is found out.
"""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

NUM_CLASSES = 6
WIDTH = 10


class Pictures(Dataset[dict[str, Any]]):
    """Noisy pictures of few colours; the class is the colour."""

    def __init__(self, count: int, *, seed: int = 0, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        colours = torch.randint(256, (NUM_CLASSES, 3, 1, 1), generator=torch.Generator().manual_seed(1))
        self.labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        noise = torch.randint(-60, 60, (count, 3, 4, 4), generator=generator)
        self.images = (colours[self.labels] + noise).clamp(0, 255).to(torch.uint8)
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        item = {"image": self.images[number], "index": number}
        return item | ({"label": int(self.labels[number])} if self.labelled else {})


class PictureData(pl.LightningDataModule):
    """Ordinary loaders without generators."""

    num_classes = NUM_CLASSES

    def __init__(self, *, train: int = 48, val: Sequence[int] = (21,), labelled: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.train = Pictures(train, seed=seed, labelled=labelled)
        self.val = [Pictures(count, seed=100 + number + seed) for number, count in enumerate(val)]
        self.setups: list[str] = []

    def prepare_data(self) -> None:
        self.setups.append("prepare")

    def setup(self, stage: str) -> None:
        self.setups.append(stage)
        torch.rand(3)  # as a random split would

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def bank_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=8)

    def val_dataloader(self) -> Any:
        loaders = [DataLoader(pictures, batch_size=8) for pictures in self.val]
        return loaders[0] if len(loaders) == 1 else loaders


class Anybodys(pl.LightningModule):
    """Two noisy views, BatchNorm, dropout, and one layer frozen in evaluation mode."""

    def __init__(self, *, hidden: frozenset[str] = frozenset()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, WIDTH)
        )
        self.frozen = nn.BatchNorm1d(WIDTH).eval()
        self.hidden = hidden  # keys that the steps keep to themselves
        self.modes: list[list[bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.frozen(self.encoder(images.float() / 128 - 1))
        return features

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.modes.append([part.training for part in self.modules()])
        images = batch["image"].float()
        views = torch.cat([images + 20 * torch.randn_like(images) for _ in range(2)])
        features = self(views)
        first, second = nn.functional.normalize(features, dim=1).chunk(2)
        logits = first @ second.T / 0.5
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        return {"loss": loss} | self.shown({"features": features, **self.known(batch)})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.shown({"features": self(batch["image"]), **self.known(batch)})

    def known(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"index": batch["index"]} | ({"labels": batch["label"]} if "label" in batch else {})

    def shown(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in outputs.items() if key not in self.hidden}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Seen(pl.Callback):
    """Keeps copies of what the steps returned, epoch by epoch."""

    def __init__(self) -> None:
        self.train: list[dict[str, Tensor]] = []
        self.val: list[dict[str, Tensor]] = []

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.val = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append({key: value.detach().clone() for key, value in outputs.items()})

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val.append({key: value.detach().clone() for key, value in outputs.items()})


def quiet(callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    """A trainer that prints nothing and writes nothing."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | settings))
