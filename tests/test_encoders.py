"""The encoders: torchvision's and timm's networks without their classifier, and their small-image forms."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from contrastive.encoders import resnet10, resnet18, resnet34, resnet50, timm_encoder, torchvision_encoder


@pytest.mark.parametrize(("ours", "name"), [(resnet18, "resnet18"), (resnet34, "resnet34"), (resnet50, "resnet50")])
def test_weights_load_into_plain_torchvision_and_give_the_same_features(ours, name: str) -> None:
    encoder = ours().double().eval()
    plain = torchvision.models.get_model(name).double()
    plain.fc = nn.Identity()
    plain.load_state_dict(encoder.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    features = encoder(images)
    assert features.shape == (2, encoder.num_features)
    torch.testing.assert_close(features, plain.eval()(images))


def test_a_fresh_encoder_is_initialised_as_torchvision_does() -> None:
    for stem, width in [("imagenet", 64), ("small", 16)]:
        for module in resnet18(stem=stem, width=width).modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_the_small_stem_keeps_the_resolution() -> None:
    encoder = resnet18(stem="small")
    images = torch.randn(2, 3, 32, 32)
    assert encoder.maxpool(encoder.conv1(images)).shape == (2, 64, 32, 32)
    assert encoder(images).shape == (2, 512)


@pytest.mark.parametrize(("build", "num_features"), [(resnet10, 128), (resnet50, 512)])
def test_a_narrow_encoder_scales_every_stage(build, num_features: int) -> None:
    encoder = build(width=16, stem="small")
    assert encoder.num_features == num_features
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, num_features)


def test_timm_models_come_without_a_classifier() -> None:
    encoder = timm_encoder("vit_tiny_patch16_224", image_size=32)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, encoder.num_features)
    timm.create_model("resnet10t", num_classes=0).load_state_dict(timm_encoder("resnet10t").state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "num_features"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("convnext_tiny", 768)]
)
def test_torchvision_models_come_without_a_classifier(name: str, num_features: int) -> None:
    encoder = torchvision_encoder(name).eval()
    assert encoder.num_features == num_features
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, num_features)


@pytest.mark.usefixtures("without_type_checks")
def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"stem is 'imagenet' or 'small' .*, got 'cifar'"):
        resnet18(stem="cifar")
    with pytest.raises(ValueError, match="width must be at least 1 channel, got 0"):
        resnet18(width=0)
    with pytest.raises(ValueError, match=r"squeezenet1_0 ends in \w+, not in a linear classifier to remove"):
        torchvision_encoder("squeezenet1_0")
