"""What a data set is made of: which changes of it are noticed, and which are none."""

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive.data import ImageFolders, TensorImages, from_dataset
from contrastive.data.manifest import Manifest, manifest
from contrastive.data.subsets import LabelledSubset
from tests import tiny
from tests.ranks import Ranks


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """Noise of all sizes as PNG files, ``{train,val}/{a,b}/N.png``."""
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            file = folder / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (8 + number, 12, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images to train on, five to validate."""
    return write_images(tmp_path / "images", {"train": 7, "val": 5})


def folders(folder: Path, **options: Any) -> ImageFolders:
    return ImageFolders(folder / "train", folder / "val", batch_size=2, num_workers=0, **options)


def of_folder(folder: Path, **options: Any) -> Manifest:
    return manifest(folders(folder), "train", **options)


def with_other_byte(file: Path) -> None:
    """One other byte, as many of them, and the file's time as it was."""
    content, status = bytearray(file.read_bytes()), file.stat()
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_has_the_hash_of_its_bytes_its_size_its_path_and_its_label(folder: Path) -> None:
    found = of_folder(folder)
    assert found.by == "contents"
    assert found.files == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
    for file, digest, size in zip(found.files, found.hashes, found.sizes, strict=True):
        content = (folder / "train" / file).read_bytes()
        assert digest == hashlib.sha256(content).digest()
        assert size == len(content)
    assert found.numbers.tolist() == list(range(7))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_copied_or_renamed_folder_is_the_same_by_contents_and_another_by_times(folder: Path) -> None:
    copied = shutil.copytree(folder, folder.parent / "copy", copy_function=shutil.copyfile)
    (copied / "train" / "b" / "5.png").rename(copied / "train" / "b" / "7.png")
    assert of_folder(copied).digest == of_folder(folder).digest
    assert of_folder(copied, by="times").digest != of_folder(folder, by="times").digest
    again = shutil.copytree(folder, folder.parent / "again")  # with their times
    assert of_folder(again, by="times").digest == of_folder(folder, by="times").digest


def test_one_other_byte_one_image_less_and_another_label_are_other_data(folder: Path) -> None:
    digests = [of_folder(folder).digest]
    assert manifest(folders(folder), "val").digest not in digests
    with_other_byte(folder / "train" / "a" / "4.png")
    digests.append(of_folder(folder).digest)
    (folder / "train" / "a" / "6.png").unlink()
    digests.append(of_folder(folder).digest)
    (folder / "train" / "b" / "1.png").rename(folder / "train" / "a" / "9.png")
    digests.append(of_folder(folder).digest)
    assert len(set(digests)) == 4


def test_by_times_a_touched_file_is_another_one(folder: Path) -> None:
    before = of_folder(folder, by="times").digest
    file = folder / "train" / "a" / "4.png"
    with_other_byte(file)
    assert of_folder(folder, by="times").digest == before  # as many bytes, and the time set back: this one escapes
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert of_folder(folder, by="times").digest != before


def test_files_are_read_up_to_a_size_and_told_apart_by_their_times_above(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(file.stat().st_size for file in (folder / "train").glob("*/*"))
    monkeypatch.setattr("contrastive.data.manifest.READ_AT_MOST", total)
    assert of_folder(folder).by == "contents"
    monkeypatch.setattr("contrastive.data.manifest.READ_AT_MOST", total - 1)
    assert of_folder(folder).by == "times"
    assert of_folder(folder, by="contents").by == "contents"


def test_how_files_become_pixels_is_part_of_the_data(folder: Path) -> None:
    ways: list[dict[str, Any]] = [{}, {"image_size": 8}, {"image_size": 10}, {"at_least": 8}, {"background": (0, 0, 0)}]
    digests = {manifest(folders(folder, **way), "train").digest for way in ways}
    assert len(digests) == len(ways)


def test_images_in_memory_are_hashed_by_their_pixels_each_by_itself() -> None:
    images, labels = tiny.images(6, 8), torch.arange(6)

    def of_images(pixels: torch.Tensor, labels: torch.Tensor | None = labels) -> Manifest:
        return manifest(TensorImages(pixels, labels, batch_size=4), "train")

    found = of_images(images)
    assert found.by == "pixels"
    assert (len(set(found.hashes)), found.sizes, found.files) == (6, [192] * 6, None)
    changed = images.clone()
    changed[2, 1, 3, 3] += 1
    other = of_images(changed)
    assert [row for row in range(6) if other.hashes[row] != found.hashes[row]] == [2]
    digests = {found.digest, other.digest, of_images(images, labels.flip(0)).digest, of_images(images, None).digest}
    assert len(digests) == 4
    assert of_images(images.clone(), labels.clone()).digest == found.digest
    wide, high = images.view(6, 3, 4, 16), images.view(6, 3, 16, 4)
    assert not set(of_images(wide).hashes) & set(of_images(high).hashes)


def test_pixels_are_the_same_whichever_way_they_are_loaded(folder: Path) -> None:
    read = folders(folder, image_size=8)
    in_memory = manifest(read.as_tensors(), "train")
    assert in_memory.hashes == manifest(read, "train", by="pixels").hashes
    pictures = [(Image.open(folder / "train" / file), 0) for file in read.train_files]
    assert manifest(from_dataset(pictures, batch_size=3, image_size=8, num_workers=0), "train").hashes == (
        in_memory.hashes
    )
    one_size = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(4)]
    as_squares, as_ragged = (
        manifest(from_dataset(one_size, batch_size=3, ragged=ragged, num_workers=0), "train")
        for ragged in (False, True)
    )
    assert as_squares.hashes == as_ragged.hashes
    assert as_squares.digest != as_ragged.digest  # which views treat in another way
    ragged = manifest(folders(folder), "train", by="pixels")
    first = torch.from_numpy(np.array(pictures[0][0])).permute(2, 0, 1).contiguous()
    assert ragged.hashes[0] == hashlib.sha256(b"(3, 8, 12)" + first.numpy().tobytes()).digest()


def test_a_part_of_a_data_set_has_the_numbers_and_labels_of_that_part() -> None:
    data, chosen = tiny.data(20), torch.tensor([3, 8, 19])
    part = manifest(LabelledSubset(data, chosen, torch.arange(20) % 2, batch_size=3), "train")
    whole = manifest(data, "train")
    assert part.numbers.tolist() == [3, 8, 19]
    assert part.hashes == [whole.hashes[number] for number in (3, 8, 19)]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 1]


def digests_of(folder: Path) -> list[str]:
    found = [manifest(folders(folder), split, by=by) for split in ("train", "val") for by in (None, "times", "pixels")]
    return [one.digest for one in [*found, manifest(tiny.data(17), "train")]]


def message_of(folder: Path) -> str:
    data = folders(folder)
    data.setup()
    if torch.distributed.get_rank() == 0:  # after all have listed them
        torch.distributed.barrier()
        (folder / "train" / "b" / "5.png").unlink()
    else:
        torch.distributed.barrier()
        time.sleep(0.5)
    with pytest.raises(FileNotFoundError) as raised:
        manifest(data, "train")
    return str(raised.value)


def test_ranks_share_the_work_and_have_one_manifest(folder: Path, two_ranks: Ranks, three_ranks: Ranks) -> None:
    expected = digests_of(folder)
    assert two_ranks(digests_of, folder) == [expected] * 2
    assert three_ranks(digests_of, folder) == [expected] * 3
    assert all("5.png" in message for message in two_ranks(message_of, folder))  # none is left waiting for the other


def test_files_that_are_not_there_cannot_be_hashed() -> None:
    with pytest.raises(ValueError, match=r"^The images of TensorImages are not read from files, so there are no times"):
        manifest(tiny.data(8), "train", by="times")
