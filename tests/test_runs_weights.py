"""load_encoder: projects' files, runs and own networks give the features of what was saved, bit for bit."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18
from torchvision.models.resnet import Bottleneck

from contrastive import load_encoder
from contrastive.cli import main
from contrastive.encoders import ResNetEncoder, Stem, resnet10
from contrastive.encoders import resnet18 as resnet18_of_ours
from contrastive.runs.export import save_encoder
from tests import tiny
from tests.methods import METHODS
from tests.published_files import (
    Content,
    Modules,
    barlow_twins,
    barlow_twins_final,
    byol_of_lightly,
    byol_of_sthalles,
    dino_backbone,
    dino_of_lightly,
    dino_resnet,
    dino_vit,
    distributed,
    features,
    images,
    moco_v1,
    moco_v2,
    moco_v3_resnet,
    moco_v3_vit,
    resnet,
    simclr_cifar,
    simclr_converted,
    simclr_of_spijkervet,
    simclr_of_sthalles,
    simclr_pytorch,
    simsiam,
    solo_learn_cifar,
    swav,
    timm_plain,
    torchvision_plain,
    trained,
)


@pytest.mark.parametrize(
    "layout",
    [
        *(moco_v1, moco_v2, moco_v3_resnet, moco_v3_vit, dino_resnet, dino_vit, dino_backbone, swav, simsiam),
        *(barlow_twins, barlow_twins_final, simclr_pytorch, simclr_of_sthalles, simclr_of_spijkervet),
        *(simclr_converted, byol_of_sthalles, byol_of_lightly, dino_of_lightly, solo_learn_cifar, simclr_cifar),
        *(torchvision_plain, timm_plain),
    ],
)
def test_a_projects_file_gives_the_features_of_the_network_it_was_saved_from(
    layout: Callable[[], tuple[Content, nn.Module]], tmp_path: Path
) -> None:
    content, source = layout()
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    encoder = load_encoder(str(tmp_path / "checkpoint.pth.tar"))
    assert not any(module.training for module in encoder.modules())
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(source))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `contrastive fit`."""
    folder = tmp_path_factory.mktemp("run")
    for number, image in enumerate(tiny.images(20, 32)):
        for split in ("train", "test"):
            (folder / split / f"class{number % 10}").mkdir(parents=True, exist_ok=True)
            pixels = image.permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / split / f"class{number % 10}" / f"{number}.png")
    options = f"--data-dir {folder} --width 8 --batch-size 8 --max-epochs 1 --run-dir {folder / 'run'}"
    assert main(f"fit moco_resnet18_cifar10 {options} --queue-size 32 --batch-norm-groups 2".split()) == 0
    return folder / "run"


def encoder_in(checkpoint: Path) -> nn.Module:
    """The encoder of the run above, taken out by hand."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    encoder = resnet18_of_ours(stem="small", width=8)
    encoder.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("encoder.")})
    return encoder


@pytest.mark.parametrize("path", ["", "checkpoints/last.ckpt"])
def test_a_runs_folder_and_its_checkpoint_give_the_trained_encoder(run: Path, path: str) -> None:
    encoder = load_encoder(run / path)
    assert not any(module.training for module in encoder.modules())
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(encoder_in(run / "checkpoints" / "last.ckpt")))


def test_an_exported_run_gives_the_trained_encoder(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "encoder.safetensors")]) == 0
    with torch.no_grad():
        loaded = load_encoder(tmp_path / "encoder.safetensors")(images())
    assert torch.equal(loaded, features(encoder_in(run / "checkpoints" / "last.ckpt")))


@pytest.mark.parametrize("name", METHODS)
def test_the_checkpoint_of_an_own_trainer_gives_the_trained_encoder(name: str, tmp_path: Path) -> None:
    module = METHODS[name].build(resnet10(stem="small", width=8))
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.data(32))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "own.ckpt")(images()), features(module.evaluated_encoder))


@pytest.mark.parametrize(
    ("layers", "stem"), [([1, 1, 1, 1], "small"), ([2, 3, 1, 2], "imagenet"), ([3, 4, 23, 3], "imagenet")]
)
def test_depth_width_and_stem_of_a_resnet_are_read_off_its_weights(
    layers: list[int], stem: Stem, tmp_path: Path
) -> None:
    source = trained(ResNetEncoder(Bottleneck, layers, stem=stem, width=4))
    save_encoder(source, tmp_path / "encoder.safetensors")
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "encoder.safetensors")(images()), features(source))


def test_a_network_given_is_loaded_into_and_returned(tmp_path: Path) -> None:
    source, target = trained(tiny.ConvEncoder()), tiny.ConvEncoder()
    torch.save({"state_dict": distributed(Modules(encoder_q=source, queue=torch.ones(3)))}, tmp_path / "file.pt")
    assert load_encoder(tmp_path / "file.pt", target) is target
    assert not target.training
    assert torch.equal(features(target), features(source))


def test_a_network_of_numbered_layers_keeps_its_numbers(tmp_path: Path) -> None:
    source, target = (nn.Sequential(*list(trained(resnet18()).children())[:-1]) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "file.pt")
    assert torch.equal(load_encoder(tmp_path / "file.pt", target)(images()).flatten(1), features(source))


def test_the_log_says_what_was_recognised_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(moco_v2()[0], tmp_path / "file.pt")
    with caplog.at_level(logging.INFO, logger="contrastive"):
        load_encoder(tmp_path / "file.pt")
    assert caplog.messages == [
        f"{tmp_path / 'file.pt'}: MoCo v1 or v2, keys 'encoder_q.', into ResNetEncoder; left out: queue (1), "
        "queue_ptr (1), fc (4), encoder_k (124)."
    ]


def test_loading_leaves_the_random_numbers_alone(run: Path, tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "file.pt")
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    load_encoder(tmp_path / "file.pt")
    load_encoder(run)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_a_run_says_itself_which_encoder_it_has(run: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is of `contrastive fit` and says itself which encoder it has: leave encoder"
    ):
        load_encoder(run, tiny.ConvEncoder())
