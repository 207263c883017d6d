"""Somebody's own LightningModule and data, which know nothing of this package: what callbacks must work on.

Both draw from the global random state wherever they can, so that a callback that moves it is found out.
"""

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
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


# What ordinary users write: tuples in batches, a torchvision-like backbone, steps that return a loss or nothing


class Pairs(Dataset[tuple[Any, int]]):
    """Pictures as float tensors with their class; for training two noisy views of each."""

    def __init__(self, pictures: Pictures, *, augment: bool) -> None:
        self.pictures = pictures
        self.augment = augment

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        image = self.pictures.images[number].float() / 128 - 1
        label = int(self.pictures.labels[number])
        if not self.augment:
            return image, label
        return (image + 0.2 * torch.randn_like(image), image + 0.2 * torch.randn_like(image)), label


class PairData(pl.LightningDataModule):
    """Loaders as Lightning's tutorials have them."""

    def __init__(self, *, train: int = 48, val: int = 21) -> None:
        super().__init__()
        self.train, self.val = Pictures(train), Pictures(val, seed=100)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pairs(self.train, augment=True), batch_size=8, shuffle=True)

    def bank(self) -> DataLoader[Any]:
        return DataLoader(Pairs(self.train, augment=False), batch_size=10)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pairs(self.val, augment=False), batch_size=8)


class Backbone(nn.Module):
    """As torchvision's: attributes in order, a pool, a head."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.GroupNorm(4, 16) if norm is nn.GroupNorm else norm(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(nn.Conv2d(16, WIDTH, 3, padding=1), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTH, 12)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer1(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits

    def pooled(self, images: Tensor) -> Tensor:
        """What ``avgpool`` returns, flattened, written out."""
        maps = self.layer1(torch.relu(self.bn1(self.conv1(images))))
        return maps.sum((2, 3)) / maps[0, 0].numel()


class Somebodys(pl.LightningModule):
    """A method of two views with a momentum encoder, unchanged for our sake."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(norm)
        self.momentum_backbone = deepcopy(self.backbone).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (first, second), _ = batch
        loss = self.distance(first, second) + self.distance(second, first)
        self.log("train_loss", loss)
        return loss

    def distance(self, view: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.momentum_backbone(other)
        return -nn.functional.cosine_similarity(self(view), target).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_norm", self(batch[0]).norm(), sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for slow, fast in zip(self.momentum_backbone.parameters(), self.backbone.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def as_torchrun() -> None:
    """Tell Lightning that this process is one of torchrun's."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
