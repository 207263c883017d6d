"""Files that no folder of images should hold: each is named with its cause, or used rightly."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive.data import ImageFolders, LoadingError
from contrastive.data.check import find_fault
from contrastive.data.decode import NotAnImageError, decode_image, fit_image
from contrastive.data.files import list_images
from tests import hostile
from tests.test_data_folders import write_images


@pytest.mark.parametrize("name", hostile.FILES)
def test_a_hostile_file_is_refused_with_its_cause(name: str, tmp_path: Path) -> None:
    contents, cause = hostile.FILES[name]
    (tmp_path / name).write_bytes(contents())
    assert re.search(cause, find_fault(tmp_path / name, minimum_size=8) or "nothing is wrong")
    if "minimum_size" not in cause:
        with pytest.raises(NotAnImageError, match=cause):
            decode_image(tmp_path / name)


@pytest.mark.parametrize("name", hostile.USABLE)
def test_an_odd_file_that_is_an_image_is_used(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(hostile.USABLE[name]())
    assert find_fault(tmp_path / name, minimum_size=8) is None
    assert decode_image(tmp_path / name).shape[0] == 3


@pytest.mark.parametrize("pillows", [None, 10])
def test_the_cap_of_pixels_is_our_own(pillows: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    write_images(tmp_path, 1, (32, 16))
    with pytest.raises(NotAnImageError, match=r"its 32 x 16 pixels are more than max_pixels=511; raise that if"):
        decode_image(tmp_path / "000.png", max_pixels=511)
    assert decode_image(tmp_path / "000.png", max_pixels=512).shape == (3, 16, 32)
    data = ImageFolders(tmp_path, batch_size=1, num_workers=0, max_pixels=511)
    with pytest.raises(ValueError, match=r"  000\.png: its 32 x 16 pixels are more than max_pixels=511"):
        data.setup()
    for name in ("bomb.webp", "screen.gif"):
        with pytest.raises(
            NotAnImageError, match=hostile.FILES[name][1] if pillows is None else "exceeds limit|more than"
        ):
            decode_image(hostile.FILES[name][0]())


def test_a_jpeg_that_reduced_scale_makes_small_enough_may_be_large_unless_all_of_it_is_held_at_once() -> None:
    """Libjpeg holds the coefficients of a progressive JPEG, or of one of several scans, at full size."""
    for progressive in (False, True):
        contents = hostile.saved("JPEG", hostile.noise(640, 480), progressive=progressive)
        with pytest.raises(NotAnImageError, match="its 640 x 480 pixels are more than max_pixels=5000"):
            decode_image(contents, max_pixels=5000)
    baseline = hostile.saved("JPEG", hostile.noise(640, 480))
    assert decode_image(baseline, at_least=60, max_pixels=30_000).shape == (3, 60, 80)
    with pytest.raises(NotAnImageError, match="its 640 x 480 pixels are more than max_pixels=30000"):
        decode_image(hostile.saved("JPEG", hostile.noise(640, 480), progressive=True), at_least=60, max_pixels=30_000)
    with pytest.raises(NotAnImageError, match="its 640 x 480 pixels"):  # half scale has 76,800
        decode_image(baseline, at_least=240, max_pixels=30_000)


def test_a_jpeg_of_a_thousand_scans_is_refused_and_one_of_many_that_only_look_like_it_is_not() -> None:
    with pytest.raises(NotAnImageError, match="it goes over its pixels 1006 times, which would take for ever"):
        decode_image(hostile.jpeg_of_scans(1000))
    contents = hostile.saved("JPEG")
    comment = b"\xff\xfe" + (2002).to_bytes(2) + b"\xff\xda" * 1000
    for looks in (contents + b"\xff\xda" * 1000, contents[:2] + comment + contents[2:]):  # as videos behind photos do
        torch.testing.assert_close(decode_image(looks), decode_image(contents), rtol=0, atol=0)


def test_an_image_of_any_proportions_is_fitted_in_little_memory() -> None:
    """All of 2 x 400,000 pixels at 224 would be 224 x 44,800,000, which is 30 GB."""
    columns = torch.arange(400_000).remainder(251).to(torch.uint8).expand(3, 2, -1)
    fitted = fit_image(columns, 224)
    assert fitted.shape == (3, 224, 224)
    middle = columns[:, :, 199_999:200_001]
    assert int(fitted.min()) >= int(middle.min()) - 1
    assert int(fitted.max()) <= int(middle.max()) + 1
    assert fit_image(columns.mT, 224).shape == (3, 224, 224)


def test_16_bit_grey_of_every_byte_order_keeps_its_largest_value() -> None:
    for dtype in ("<u2", ">u2"):
        image = Image.fromarray(np.full((9, 9), 65535, dtype=dtype).astype(np.uint16))
        assert (decode_image(hostile.saved("TIFF", image)) == 255).all()


def test_a_name_is_told_in_one_line_whatever_it_is(tmp_path: Path) -> None:
    for name in ("two\nlines.jpg", "\udcff.jpg", "größe.jpg"):
        (tmp_path / name).touch()
    write_images(tmp_path, 1)
    data = ImageFolders(tmp_path, batch_size=1, num_workers=0, max_bad_fraction=0.9)
    with pytest.warns(UserWarning, match="3 of 4 files") as caught:
        data.setup()
    lines = str(caught[0].message).encode("utf-8").decode().splitlines()[1:4]  # encodes: no lone surrogates
    assert [line.split(": ")[0] for line in lines] == ["  größe.jpg", r"  two\nlines.jpg", r"  \udcff.jpg"]


def test_links_in_a_ring_are_bad_files_and_links_that_may_have_been_folders_stop_the_start(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    hostile.ring(tmp_path / "cat" / "ring.jpg")
    (tmp_path / "table.csv").symlink_to("/nowhere")
    tree = list_images(tmp_path)
    assert tree.files == ["cat/000.png", "cat/001.png", "cat/ring.jpg", "cat/ring.png"]
    (tmp_path / "dog").symlink_to("/nowhere/dog")
    with pytest.raises(
        OSError,
        match=r"The link .*/dog leads nowhere: No such file or directory\. It may have been a folder of images: ",
    ):
        list_images(tmp_path)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "x.jpg", 2)
    (tmp_path / "empty.png").mkdir()
    assert list_images(tmp_path).files == ["x.jpg/000.png", "x.jpg/001.png"]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("what", ["gone", "pipe", "bomb"])
def test_a_file_that_changes_after_the_start_is_named(what: str, num_workers: int, tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    data = ImageFolders(tmp_path, batch_size=1, num_workers=num_workers)
    loader = data.bank_dataloader()
    (tmp_path / "001.png").unlink()
    if what == "pipe":
        hostile.pipe(tmp_path / "001.png")
    elif what == "bomb":
        (tmp_path / "001.png").write_bytes(hostile.tiff(60000, 60000))
    cause = {
        "gone": r"001\.png was in order at the start and cannot be read now: No such file or directory\. Put it back",
        "pipe": r"001\.png has a good header but does not decode: it is a pipe, not a file",
        "bomb": r"001\.png has a good header but does not decode: its 60000 x 60000 pixels are more than max_pixels=",
    }[what]
    with pytest.raises(LoadingError, match=cause):
        list(loader)
