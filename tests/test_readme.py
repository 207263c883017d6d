"""The README's trainer scripts run as they stand there."""

import re
from pathlib import Path

import pytest
from torchvision.datasets import FakeData
from torchvision.transforms.functional import to_pil_image

from contrastive.data import Shapes

README = Path(__file__).parent.parent / "README.md"


def blocks(word: str) -> list[str]:
    """Those of Python with this word."""
    return [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if word in block]


def replaced(script: str, old: str, new: str) -> str:
    assert script.count(old) == 1, f"{old!r} stands {script.count(old)} times in the README's script"
    return script.replace(old, new)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A few images more than a batch, as PNG files in class folders."""
    shapes = Shapes(num_train=40, num_test=30)
    for split, images, labels in [
        ("train", shapes.images("train"), shapes.labels("train")),
        ("test", shapes.images("val"), shapes.labels("val")),
    ]:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = tmp_path / split / shapes.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(folder / f"{number:04d}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a user's run is not stopped by Lightning's hints either
def test_the_trainer_scripts_run_with_their_data_path_and_epochs_replaced(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    script, surviving = blocks("pl.Trainer(")  # the ordinary one, and what makes it survive
    script = replaced(script, '"cifar10/train"', repr(str(image_folder / "train")))
    script = replaced(script, '"cifar10/test"', repr(str(image_folder / "test")))
    script = replaced(script, "max_epochs=200", "max_epochs=1")
    script = replaced(script, "batch_size=512", "batch_size=32")
    script = replaced(script, "warmup_epochs=10", "warmup_epochs=0")
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(script, "README.md", "exec"), namespace)
    metrics = namespace["trainer"].callback_metrics
    assert {"train/loss", "linear_probe/top1", "knn/top1", "collapse/effective_rank"} <= metrics.keys()
    assert metrics["train/loss"].isfinite()
    assert 0 <= metrics["linear_probe/top1"] <= 1
    for epochs, steps in (("1", 1), ("3", 3)):  # the second time it goes on
        exec(compile(replaced(surviving, "max_epochs=200", f"max_epochs={epochs}"), "README.md", "exec"), namespace)
        assert namespace["trainer"].global_step == steps


def test_a_data_set_of_torchvision_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretended(root: str, *, train: bool, download: bool = False) -> FakeData:
        return FakeData(600 if train else 30, (3, 32, 32), num_classes=10)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", pretended)
    namespace: dict[str, object] = {}
    exec(compile(*blocks("from_dataset"), "README.md", "exec"), namespace)
    data = namespace["data"]
    data.num_workers = 0
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (512, 3, 32, 32)
    assert data.num_images("val") == 30
