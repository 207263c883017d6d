"""What ``contrastive evaluate`` is pointed at."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from contrastive.augmentations import RaggedImages, simclr_views
from contrastive.data import ImageFolders
from contrastive.encoders import resnet18
from contrastive.runs import targets
from contrastive.runs.export import save_encoder
from contrastive.runs.signature import UsageError
from contrastive.runs.targets import ColourHistogram, Pixels, Target, baselines, open_target


def photograph(height: int, width: int) -> Image.Image:
    """Smooth, with colours, of any size."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def seen(target: Target, image: Image.Image) -> Tensor:
    """What the encoder sees of an image: [3, H, W]."""
    images = RaggedImages.pack([pil_to_tensor(image)])
    return target.views.evaluation_view(images)[0]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_model_of_timm_sees_images_as_timm_prepares_them(name: str) -> None:
    target = open_target(f"timm:{name}", pretrained=False)
    image = photograph(301, 420)
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    expected = timm.data.create_transform(**config)(image)
    # Pillow rounds to bytes after each of its two passes: up to about a level and a half of 255, over std.
    torch.testing.assert_close(seen(target, image), expected, atol=0.03, rtol=0)
    assert target.encoder(expected[None]).shape == (1, target.encoder.num_features)


def test_a_model_of_torchvision_sees_images_as_torchvision_prepares_them() -> None:
    target = open_target("torchvision:resnet18", pretrained=False)
    image = photograph(301, 420)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    torch.testing.assert_close(seen(target, image), transform(pil_to_tensor(image)), atol=0.03, rtol=0)


def test_small_images_are_seen_whole() -> None:
    target = open_target("timm:resnet18", pretrained=False, image_size=32)
    image = photograph(32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pil_to_tensor(image) / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(seen(target, image), expected)


def test_a_vision_transformer_is_built_for_the_image_size() -> None:
    target = open_target("timm:vit_tiny_patch16_224", pretrained=False, image_size=64)
    assert target.encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("timm:resnet19", "timm has no model 'resnet19'. Did you mean resnet"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'. Did you mean resnet"),
    ],
)
def test_a_wrong_name_of_a_model_names_the_nearest(what: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_target(what)


def test_nothing_there_says_what_can_be_given() -> None:
    with pytest.raises(FileNotFoundError, match="There is no run, checkpoint or file of weights at runs"):
        open_target("runs/gone")


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, weights: str | None) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("contrastive.encoders.get_model", offline)
    with pytest.raises(OSError, match=r"weights of torchvision's resnet18 could not be fetched: .* --pretrained false"):
        open_target("torchvision:resnet18")


def test_drawn_weights_are_a_function_of_the_seed_and_leave_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (open_target("torchvision:resnet18", pretrained=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [next(target.encoder.parameters()) for target in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_file_of_weights_is_an_encoder_that_needs_a_folder_of_images(tmp_path: Path) -> None:
    encoder = resnet18(width=8)
    save_encoder(encoder, tmp_path / "weights.safetensors")
    target = open_target(str(tmp_path / "weights.safetensors"), image_size=32)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(target.encoder(images), encoder.eval()(images))
    assert target.checkpoint == tmp_path / "weights.safetensors"
    with pytest.raises(UsageError, match="Missing: --data-dir"):
        target.open_data(None)


def test_a_folder_of_images_is_opened_with_its_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            photograph(40, 50).save(tmp_path / split / label / "a.png")
    data = open_target("timm:resnet18", pretrained=False).open_data(tmp_path)
    assert isinstance(data, ImageFolders)
    assert data.classes == ["cat", "dog"]
    assert data.num_images("val") == 2


def test_pixels_are_means_over_blocks() -> None:
    images = torch.rand(2, 3, 32, 32)
    expected = images.numpy().reshape(2, 3, 16, 2, 16, 2).mean(axis=(3, 5)).reshape(2, -1)
    np.testing.assert_allclose(Pixels(16)(images).numpy(), expected, rtol=1e-5)


def test_colours_are_counted_as_numpy_counts_them() -> None:
    images = torch.rand(2, 3, 20, 20)
    images[0, :, 0, 0] = 1.0  # belongs to the last bin
    found = ColourHistogram(4)(images)
    for image, histogram in zip(images.numpy(), found.numpy(), strict=True):
        counts, _ = np.histogramdd(image.reshape(3, -1).T, bins=4, range=[(0, 1)] * 3)
        np.testing.assert_allclose(histogram**2, counts.ravel() / 400, atol=1e-6)


def test_baselines_see_the_same_part_of_an_image_without_normalisation() -> None:
    target = open_target("timm:resnet18", pretrained=False, image_size=48)
    pixels, colours = baselines(target)
    image = photograph(48, 60)
    expected = pil_to_tensor(image.crop((6, 0, 54, 48))) / 255
    for baseline in (pixels, colours):
        torch.testing.assert_close(seen(baseline, image), expected)
        assert baseline.checkpoint is None


def test_a_trained_encoder_is_compared_with_its_own_network_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "torchvision_encoder", lambda name, pretrained: resnet18(width=4 if pretrained else 8))
    target = open_target("torchvision:resnet18")
    *_, untrained = baselines(target)
    assert untrained.name == "untrained encoder"
    assert untrained.encoder.num_features == 64  # the stand-in that was asked for without weights


def test_views_that_do_not_say_how_they_normalise_have_no_colours_to_count() -> None:
    from contrastive.augmentations import views_from

    target = open_target("timm:resnet18", pretrained=False)
    adapted = views_from(lambda images: [images, images])
    of_adapted = Target("t", target.encoder, adapted, target.open_data, target.folder, Path())
    assert baselines(of_adapted) == []


def test_simclr_views_of_a_run_are_cut_without_normalisation_too() -> None:
    target = open_target("timm:resnet18", pretrained=False)
    run = Target("t", target.encoder, simclr_views(32), target.open_data, target.folder, Path())
    pixels, _ = baselines(run)
    square = pil_to_tensor(photograph(32, 32))[None]
    torch.testing.assert_close(pixels.views.evaluation_view(square)[0], square[0] / 255)
