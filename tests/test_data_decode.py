"""Decoding: every mode and format against Pillow, numpy and torchvision."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tv

from contrastive.data.decode import NotAnImageError, decode_image, fit_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)


def pixels(path: Path, **options: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decoded by us, as [H, W, 3]."""
    image = decode_image(path, **options)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def png_of_16_bits(values: NDArray[np.uint16]) -> bytes:
    """A PNG file written by hand (PNG specification, sections 5 and 11); values [H, W, 1..4]."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp"])
def test_lossless_colour_files_come_back_bit_for_bit(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if extension == "webp" else {}))
    np.testing.assert_array_equal(pixels(path), RGB)


def test_jpeg_is_what_pillow_decodes(cifar10_folder: Path) -> None:
    for path in sorted(cifar10_folder.glob("train/*/*.jpg"))[::10]:
        np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path).convert("RGB")))


def test_contents_decode_like_their_file(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode_image((tmp_path / "x.png").read_bytes()).permute(1, 2, 0), RGB)


def test_first_frame_of_an_animated_gif_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(tmp_path / "x.gif"), np.broadcast_to([255, 0, 0], (5, 6, 3)))


def test_first_page_of_a_tiff_is_taken(tmp_path: Path) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "x.tiff", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(pixels(tmp_path / "x.tiff"), RGB)


def test_grey_and_bilevel_become_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png"), RGB[..., [0, 0, 0]])
    bits = RGB[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pixels(tmp_path / "bits.png"), 255 * bits[..., None].repeat(3, 2))


def test_palette_is_looked_up(tmp_path: Path) -> None:
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    numbers = RNG.integers(0, 256, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), numbers.tobytes())
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), palette[numbers])


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 64)])
def test_transparency_lies_over_the_background(tmp_path: Path, background: tuple[int, int, int]) -> None:
    alpha = RNG.integers(0, 256, (11, 7, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "x.png")
    weight = alpha / 255
    expected = RGB * weight + np.array(background) * (1 - weight)
    assert np.abs(pixels(tmp_path / "x.png", background=background) - expected).max() <= 1


def test_the_background_is_white_unless_given(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (4, 4), (10, 0)).save(tmp_path / "la.png")
    for name in ("rgba.png", "la.png"):
        assert (pixels(tmp_path / name) == 255).all()


def test_transparent_palette_entries_and_colours_show_the_background(tmp_path: Path) -> None:
    numbers = RNG.integers(0, 4, (11, 7), dtype=np.uint8)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), numbers.tobytes())
    image.putpalette(palette.tobytes())
    expected = np.where((numbers == 2)[..., None], [255, 255, 255], palette[numbers])
    for name in ("one.png", "one.gif"):
        image.save(tmp_path / name, transparency=2)
        np.testing.assert_array_equal(pixels(tmp_path / name), expected)
    image.convert("RGB").save(tmp_path / "colour.png", transparency=(0, 255, 0))
    np.testing.assert_array_equal(pixels(tmp_path / "colour.png"), expected)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    inks = np.zeros((8, 8, 4), dtype=np.uint8)
    inks[..., 0], inks[..., 3] = 255, 51  # full cyan, a fifth black
    Image.frombytes("CMYK", (8, 8), inks.tobytes()).save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(pixels(tmp_path / "x.tiff"), np.broadcast_to([0, 204, 204], (8, 8, 3)))
    Image.frombytes("CMYK", (8, 8), inks.tobytes()).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "x.jpg").astype(int) - [0, 204, 204]).max() <= 3


def test_16_bit_grey_png_is_divided_by_257_for_every_value(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    (tmp_path / "x.png").write_bytes(png_of_16_bits(values))
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), np.broadcast_to(np.round(values / 257), (256, 256, 3)))


def test_16_bit_colour_png_is_within_one_level_of_that_for_every_value(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    colours = np.stack([values, values.T, values[::-1]], axis=2)
    (tmp_path / "x.png").write_bytes(png_of_16_bits(colours))
    assert np.abs(pixels(tmp_path / "x.png") - colours / 257).max() < 1


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bit_png_with_transparency_lies_over_the_background(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 65536, (9, 5, channels), dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(png_of_16_bits(values))
    weight = values[..., -1:] / 65535
    expected = values[..., :-1] / 257 * weight + np.array([10, 20, 30]) * (1 - weight)
    assert np.abs(pixels(tmp_path / "x.png", background=(10, 20, 30)) - expected).max() < 2


def test_16_bit_grey_tiff_is_scaled_in_both_byte_orders(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (9, 5), dtype=np.uint16)
    expected = np.broadcast_to(np.round(values / 257)[..., None], (9, 5, 3))
    Image.fromarray(values).save(tmp_path / "little.tiff")
    Image.frombytes("I;16B", (5, 9), values.astype(">u2").tobytes()).save(tmp_path / "big.tiff")
    for name in ("little.tiff", "big.tiff"):
        np.testing.assert_array_equal(pixels(tmp_path / name), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, extension: str, orientation: int) -> None:
    path = tmp_path / f"x.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).resize((24, 16)).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert expected.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    np.testing.assert_array_equal(pixels(path), expected)


def test_16_bit_png_is_turned_upright_too(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (9, 5), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    expected = np.rot90(np.round(values / 257), k=-1)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png")[..., 0], expected)


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_a_file_cut_short_is_no_image_and_never_half_decoded(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    contents = path.read_bytes()
    for kept in (0.5, 0.9):
        with pytest.raises(NotAnImageError):
            decode_image(contents[: int(len(contents) * kept)])


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not found")
    with pytest.raises(NotAnImageError, match="its contents are none of JPEG, PNG, WEBP, BMP, TIFF, GIF"):
        decode_image(tmp_path / "text.jpg")
    Image.fromarray(RGB).save(tmp_path / "x.png")
    cut = (tmp_path / "x.png").read_bytes()[:-60]
    with pytest.raises(NotAnImageError, match="its pixels are cut short: image file is truncated"):
        decode_image(cut)
    Image.fromarray(RNG.random((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(NotAnImageError, match="floats of unknown range; save it with 8 or 16 bits"):
        decode_image(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(NotAnImageError, match=r"32-bit grey values 70000\.\.70000 have no known range"):
        decode_image(tmp_path / "wide.tiff")
    with pytest.raises(
        NotAnImageError, match="its 7 x 11 pixels are more than max_pixels=76; raise that if it is genuine"
    ):
        decode_image(tmp_path / "x.png", max_pixels=76)
    assert decode_image(tmp_path / "x.png", max_pixels=77).shape == (3, 11, 7)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        decode_image(tmp_path / "absent.png")


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (33, 33), (32, 47), (20, 31), (33, 32), (500, 9)])
def test_fitting_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = tv.center_crop(tv.resize(image, [32], antialias=True), [32])
    torch.testing.assert_close(fit_image(image, 32), expected, rtol=0, atol=0)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit_image(image, 32), image, rtol=0, atol=0)


def test_a_large_jpeg_decoded_at_reduced_scale_is_nearly_the_same(tmp_path: Path) -> None:
    smooth = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (800, 600), Image.Resampling.BICUBIC
    )
    smooth.save(tmp_path / "x.jpg", quality=95)
    reduced = decode_image(tmp_path / "x.jpg", at_least=128)
    assert reduced.shape == (3, 150, 200)  # a quarter; an eighth would leave 75 pixels
    assert decode_image(tmp_path / "x.jpg").shape == (3, 600, 800)
    difference = fit_image(reduced, 64).float() - fit_image(decode_image(tmp_path / "x.jpg"), 64).float()
    assert difference.abs().max() <= 4
