"""Data modules inside Lightning: its defaults keep our samplers, ranks see each image once, resuming is exact."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from contrastive.data import TensorImages, from_dataset
from contrastive.data.module import ImageData

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 19
IMAGES = torch.randint(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*weights_only. was not set:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec. is deprecated:FutureWarning"),
]


class Pairs(Dataset[tuple[Tensor, int]]):
    """The images as a map-style data set."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index], index % 3


class Recorder(pl.LightningModule):
    """Writes down which images each step sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.steps.append((self.global_step, batch["index"].tolist()))
        return (self.weight**2).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AsksForItsLength(Recorder):
    """As every schedule does, and Lightning then makes the loader before it knows that the run is resumed."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.num_steps = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def data_module(kind: str) -> ImageData:
    if kind == "tensors":
        return TensorImages(IMAGES, torch.arange(NUM_IMAGES) % 3, IMAGES[:5], torch.arange(5) % 3, batch_size=4, seed=3)
    return from_dataset(Pairs(), Pairs(), batch_size=4, num_workers=int(kind[-1]), seed=3)


def fit(
    data: ImageData, folder: Path, *, resume: Path | None = None, kind: type[Recorder] = Recorder, **options: Any
) -> Recorder:
    module = kind()
    trainer = pl.Trainer(
        **{"max_epochs": 3} | options,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module


class SaveAfterValidation(Callback):
    """A checkpoint from within the validation loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"validated-{trainer.global_step}.ckpt")


@pytest.mark.parametrize("kind", ["tensors", "workers-0", "workers-2"])
def test_each_epoch_sees_each_image_once_in_another_order(kind: str, tmp_path: Path) -> None:
    module = fit(data_module(kind), tmp_path, enable_checkpointing=False)
    seen = [image for _, images in module.steps for image in images]
    epochs = [seen[:16], seen[16:32], seen[32:]]
    assert all(len(epoch) == len(set(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert sorted(module.validated) == sorted(list(range(5 if kind == "tensors" else NUM_IMAGES)) * 3)


def test_workers_and_tensors_give_the_same_batches(tmp_path: Path) -> None:
    runs = [
        fit(data_module(kind), tmp_path, enable_checkpointing=False) for kind in ("tensors", "workers-0", "workers-2")
    ]
    assert runs[0].steps == runs[1].steps == runs[2].steps


@pytest.mark.parametrize("kind", ["tensors", "workers-2"])
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}])
def test_a_resumed_run_sees_what_the_whole_run_would_have_seen(
    kind: str, options: dict[str, int], tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    ending = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    whole = fit(data_module(kind), tmp_path, callbacks=[saving, ending, SaveAfterValidation(tmp_path)], **options)
    # Inside an epoch, at its last step, after its end, and after its validation.
    for name in ("step=2", "step=5", "step=6", "epoch=0", "epoch=1", f"validated-{len(whole.steps) // 3}"):
        path = tmp_path / f"{name}.ckpt"
        done = torch.load(path, weights_only=False)["global_step"]
        resumed = fit(data_module(kind), tmp_path, resume=path, enable_checkpointing=False, **options)
        assert resumed.steps == [(step, images) for step, images in whole.steps if step >= done], name


@pytest.mark.parametrize("kind", ["tensors", "workers-0"])
def test_a_run_with_a_schedule_resumes_inside_an_epoch_and_the_next_run_begins_anew(kind: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = fit(data_module(kind), tmp_path, kind=AsksForItsLength, callbacks=[saving])
    for done in (1, 6):
        data, path = data_module(kind), tmp_path / f"step={done}.ckpt"
        resumed = fit(data, tmp_path, kind=AsksForItsLength, resume=path, enable_checkpointing=False)
        assert resumed.steps == whole.steps[done:]
        again = fit(data, tmp_path, kind=AsksForItsLength, resume=path, enable_checkpointing=False)
        assert again.steps == whole.steps[done:]
        assert fit(data, tmp_path, kind=AsksForItsLength, enable_checkpointing=False).steps == whole.steps


def test_a_position_restored_after_the_loader_was_made_counts_too() -> None:
    order = [batch["index"].tolist() for batch in data_module("tensors").train_dataloader()]
    data = data_module("tensors")
    loader = data.train_dataloader()
    data.load_state_dict({"epoch": 0, "images": 8})
    assert [batch["index"].tolist() for batch in loader] == order[2:]


def test_an_interrupted_run_resumes_on_the_same_data_module(tmp_path: Path) -> None:
    class Stops(AsksForItsLength):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            if len(self.steps) == 3:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    data = data_module("tensors")
    whole = fit(data_module("tensors"), tmp_path, enable_checkpointing=False)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(data, tmp_path, kind=Stops, callbacks=[saving])
    resumed = fit(data, tmp_path, kind=AsksForItsLength, resume=tmp_path / "step=3.ckpt", enable_checkpointing=False)
    assert resumed.steps == whole.steps[3:]


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
@pytest.mark.parametrize("kind", ["tensors", "workers-0"])
def test_overfitting_repeats_the_same_batches(kind: str, tmp_path: Path) -> None:
    module = fit(data_module(kind), tmp_path, overfit_batches=2, enable_checkpointing=False)
    batches = [images for _, images in module.steps]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


def test_too_few_images_stop_a_run_that_lightning_alone_would_end_without_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are 19 training images, fewer than one global batch of 20"):
        fit(TensorImages(IMAGES, batch_size=20), tmp_path, enable_checkpointing=False)


SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
from contrastive.data import ImageFolders, TensorImages
from tests.test_data_lightning import OnlyTheFirstIsRight, ordinary_loader

folder = Path(sys.argv[1])
images, labels = torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64)
sources = {
    "tensors": TensorImages(images, labels, images, labels, batch_size=2, seed=1),
    "folders": ImageFolders(folder / "images", folder / "images", image_size=8, batch_size=2, num_workers=1, seed=1),
    "ordinary": None,
}
results = {}
for kind, data in sources.items():
    module = OnlyTheFirstIsRight()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )
    if data is None:
        trainer.validate(module, ordinary_loader(), verbose=False)
    else:
        trainer.fit(module, data)
    results[kind] = {"accuracy": float(trainer.callback_metrics["accuracy"]), "seen": module.seen}
try:
    where = "empty" if trainer.global_rank == 0 else "images"
    ImageFolders(folder / where, image_size=8, batch_size=2).setup()
except ValueError as error:
    results["refused"] = str(error)
(folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(results))
"""


class OnlyTheFirstIsRight(pl.LightningModule):
    """A classifier that is right about image 0 alone, and notes what each epoch shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))  # buffers: DDP synchronises them
        self.accuracy = MeanMetric()
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def on_train_epoch_start(self) -> None:
        self.seen["train"].append([])

    def on_validation_epoch_start(self) -> None:
        self.seen["val"].append([])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen["train"][-1] += batch["index"].tolist()
        return self.net(batch["index"][:, None].float()).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["val"][-1] += batch["index"].tolist()
        right = (batch["index"] == 0).float()
        self.accuracy.update(right)
        self.log("accuracy", self.accuracy, batch_size=len(right), on_epoch=True)
        # A collective in every step, which for ever waits for a rank that has fewer batches.
        self.all_gather(right.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ordinary_loader() -> DataLoader[dict[str, int]]:
    """Nine images in an ordinary loader, whose sampler Lightning replaces."""
    return DataLoader([{"index": k} for k in range(9)], batch_size=5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two real ranks saw and logged, per kind of data."""
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "images").mkdir()
    (folder / "empty").mkdir()
    for k in range(9):
        Image.new("RGB", (8, 8), (k, k, k)).save(folder / "images" / f"{k}.png")
    (folder / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "LOCAL_", "NODE_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, folder / "script.py", folder],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        if process.poll() is None:  # a hang: end the other rank and the workers too
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensors", "folders"])
def test_two_ranks_count_validation_exactly_with_lightnings_defaults(
    kind: str, two_ranks: list[dict[str, Any]]
) -> None:
    for rank in two_ranks:
        assert rank[kind]["accuracy"] == pytest.approx(1 / 9)
    validated = [rank[kind]["seen"]["val"] for rank in two_ranks]
    assert [first + second for first, second in zip(*validated, strict=True)] == [list(range(9))] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensors", "folders"])
def test_two_ranks_train_on_each_image_once_per_epoch(kind: str, two_ranks: list[dict[str, Any]]) -> None:
    trained = [rank[kind]["seen"]["train"] for rank in two_ranks]
    epochs = [first + second for first, second in zip(*trained, strict=True)]
    assert all(len(epoch) == len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 2


@pytest.mark.slow
def test_what_the_first_rank_finds_wrong_stops_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["refused"].startswith("No images in ")
    assert two_ranks[1]["refused"] == two_ranks[0]["refused"]


@pytest.mark.slow
def test_an_ordinary_loader_counts_the_padded_image_twice(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["ordinary"]["accuracy"] == pytest.approx(2 / 10)  # what the samplers are there to avoid
