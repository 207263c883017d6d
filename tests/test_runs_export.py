"""save_encoder: the lines it returns, executed, rebuild the encoder and load the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from contrastive import load_encoder, recipes
from contrastive.encoders import ResNetEncoder, moco_v3_vit, resnet18, timm_encoder
from contrastive.runs.export import save_encoder
from contrastive.runs.load import build
from tests import tiny
from tests.published_files import solo_learn_cifar, trained
from tests.test_recipes import small


def rebuilt(encoder: nn.Module, folder: Path) -> nn.Module:
    """What the lines make, run by themselves."""
    names: dict[str, Any] = {}
    exec(save_encoder(encoder, folder / "encoder.safetensors"), names)
    model = names["model"]
    assert isinstance(model, nn.Module)
    return model.eval()


@torch.no_grad()
def assert_same(model: nn.Module, encoder: nn.Module, size: int) -> None:
    images = torch.rand(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), encoder.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipes_encoder_is_rebuilt_by_the_lines(name: str, tmp_path: Path) -> None:
    method = build(name, small(name)).method
    encoder = trained(method.evaluated_encoder)
    size = method.make_views.evaluation_view(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).shape[-1]
    assert_same(rebuilt(encoder, tmp_path), encoder, size)


def small_stem_of_solo_learn(width: int) -> ResNetEncoder:
    encoder = ResNetEncoder(BasicBlock, [1, 1, 1, 1], stem="small", width=width)
    encoder.conv1.padding = (2, 2)
    return encoder


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_stem_of_solo_learn(8),
        lambda: moco_v3_vit("small", image_size=32),
        lambda: timm_encoder("vit_tiny_patch16_224", image_size=32),
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, num_heads=6),
        lambda: timm_encoder("resnet10t"),
    ],
)
def test_what_the_weights_do_not_tell_is_in_the_lines(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    encoder = trained(make())
    assert_same(rebuilt(encoder, tmp_path), encoder, 32)


def test_solo_learns_small_stem_becomes_torchvisions_with_its_padding(tmp_path: Path) -> None:
    torch.save(solo_learn_cifar()[0], tmp_path / "checkpoint.ckpt")
    encoder = load_encoder(tmp_path / "checkpoint.ckpt")
    model = rebuilt(encoder, tmp_path)
    assert type(model) is ResNet
    assert_same(model, encoder, 32)


def test_a_vit_for_any_image_size_stays_one(tmp_path: Path) -> None:
    encoder = trained(timm_encoder("vit_tiny_patch16_224", image_size=32, any_image_size=True))
    assert_same(rebuilt(encoder, tmp_path), encoder, 48)


def test_an_encoder_of_the_published_width_needs_nothing_of_this_package(tmp_path: Path) -> None:
    for encoder in (resnet18(stem="small"), moco_v3_vit("small", image_size=32)):
        imports, construction, _ = save_encoder(encoder, tmp_path / "encoder.safetensors").splitlines()
        assert "contrastive" not in imports + construction


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^How to build a plain ConvEncoder is not known\. Export encoders of contras"):
        save_encoder(tiny.ConvEncoder(), tmp_path / "encoder.safetensors")
