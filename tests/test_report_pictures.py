"""Pictures of a run."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive.augmentations import CIFAR10, IMAGENET, Normalize, RaggedImages, simclr_views
from contrastive.report.pictures import displayable, read_metrics, save_curves, save_pairs

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

METRICS = """epoch,step,train/loss,train/lr,knn/top1,linear_probe/top1
0,4,5.5,0.1,,
0,9,5.0,0.2,,
0,9,,,0.25,0.30
1,14,4.5,0.1,,
1,19,4.0,0.0,,
1,19,,,0.50,0.60
"""


def colours(file: Path) -> set[tuple[int, int, int]]:
    with Image.open(file) as picture:
        pixels = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert pixels is not None
    return {colour for count, colour in pixels if isinstance(colour, tuple) and count >= 20}


@pytest.mark.parametrize("normalize", [CIFAR10, IMAGENET, None])
def test_a_normalised_image_is_shown_in_its_own_colours(normalize: Normalize | None) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    make_views = simclr_views(16, blur=False, normalize=normalize)
    shown = displayable(make_views.evaluation_view(images), make_views)
    torch.testing.assert_close(shown, images.permute(0, 2, 3, 1) / 255, atol=1e-5, rtol=0)


def test_pairs_picture_holds_the_images_in_their_own_colours(tmp_path: Path) -> None:
    solid = torch.tensor([[10, 200, 30], [250, 20, 120]], dtype=torch.uint8)  # no colour that text is drawn in
    images = solid[:, :, None, None].expand(2, 3, 16, 16).contiguous()
    unchanged = simclr_views(16, strength=0.0, blur=False, num_views=3)

    def file_for(images: Tensor) -> Path:
        save_pairs(images, torch.arange(len(images)), unchanged, tmp_path / "pairs.png", 0, title="Pairs")
        return tmp_path / "pairs.png"

    assert {(10, 200, 30), (250, 20, 120)} <= colours(file_for(images))
    assert (10, 200, 30) not in colours(file_for(images[1:]))


def test_pairs_of_images_of_different_sizes_are_drawn_too(tmp_path: Path) -> None:
    solid = [torch.tensor(c, dtype=torch.uint8)[:, None, None] for c in [(10, 200, 30)] * 8 + [(250, 20, 120)]]
    images = RaggedImages.pack([colour.expand(3, 20 + n, 16).contiguous() for n, colour in enumerate(solid)])
    unchanged = simclr_views(16, strength=0.0, blur=False)
    save_pairs(images, torch.arange(9), unchanged, tmp_path / "pairs.png", 0, title="Pairs")
    assert (10, 200, 30) in colours(tmp_path / "pairs.png")
    assert (250, 20, 120) not in colours(tmp_path / "pairs.png")  # the ninth


def test_metrics_are_placed_at_fractions_of_epochs(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["train/loss"] == [(0.5, 5.5), (1.0, 5.0), (1.5, 4.5), (2.0, 4.0)]
    assert series["knn/top1"] == [(1.0, 0.25), (2.0, 0.5)]


def test_curves_draw_every_probe_in_its_own_colour(tmp_path: Path) -> None:
    metrics, picture = tmp_path / "metrics.csv", tmp_path / "curves.png"
    metrics.write_text(METRICS)
    save_curves(metrics, picture, title="Training")
    assert {BLUE, ORANGE} <= colours(picture)

    without_second_probe = "\n".join(line.rpartition(",")[0] for line in METRICS.splitlines()) + "\n"
    metrics.write_text(without_second_probe)
    save_curves(metrics, picture, title="Training")
    assert BLUE in colours(picture)
    assert ORANGE not in colours(picture)


def test_curves_of_a_run_without_metrics_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", title="Training")
