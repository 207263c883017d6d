"""Image folders: which files are found, which are refused, and what a batch holds."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as tv

from contrastive.data import ImageFolders, LoadingError
from contrastive.data.check import find_fault
from contrastive.data.files import check_same_classes, list_images


def write_images(folder: Path, count: int, size: tuple[int, int] = (16, 16), extension: str = "png") -> None:
    """Write images of different colours, 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", size, (k % 256, k // 256, 7)).save(folder / f"{k:03d}.{extension}")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two class folders of ten images each for training, of three for validation."""
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 10)
        write_images(tmp_path / "val" / name, 3)
    return tmp_path


# ---------------------------------------------------------------------------------------------- the files of a folder


def test_class_folders_are_read_as_torchvision_reads_them(cifar10_folder: Path) -> None:
    ours = list_images(cifar10_folder / "train")
    theirs = ImageFolder(cifar10_folder / "train")
    assert ours.classes == theirs.classes
    assert [
        (str(ours.root / file), label) for file, label in zip(ours.files, ours.labels or [], strict=True)
    ] == theirs.samples


def test_a_tree_with_images_at_its_root_has_no_classes(pets: Path) -> None:
    write_images(pets / "train", 1)
    tree = list_images(pets / "train")
    assert tree.classes is None
    assert tree.labels is None
    assert len(tree.files) == 21


def test_classes_can_be_demanded_and_declined(pets: Path) -> None:
    assert list_images(pets / "train", labelled=False).classes is None
    assert list_images(pets, labelled=True).classes == ["train", "val"]
    (pets / "one").mkdir()
    write_images(pets / "one" / "cat" / "deep", 2)
    assert list_images(pets / "one").classes is None
    assert list_images(pets / "one", labelled=True).classes == ["cat"]
    write_images(pets / "train", 1)
    with pytest.raises(ValueError, match=r"labelled=True, but images lie directly in .*train, .*for example 000\.png"):
        list_images(pets / "train", labelled=True)


def test_every_image_extension_is_found_in_either_case_and_others_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif", "i.txt", "j.txt", "k"):
        (tmp_path / name).touch()
    tree = list_images(tmp_path)
    assert tree.files == ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif"]
    assert tree.ignored == {".txt": 2, "": 1}


def test_hidden_files_and_folders_are_ignored(pets: Path) -> None:
    write_images(pets / "train" / ".thumbnails", 2)
    (pets / "train" / "cat" / "._000.png").write_bytes(b"macOS resource fork")
    tree = list_images(pets / "train")
    assert tree.classes == ["cat", "dog"]
    assert len(tree.files) == 20


def test_links_are_followed_but_no_folder_is_visited_twice(pets: Path) -> None:
    train = pets / "train"
    (train / "cat" / "loop").symlink_to(train, target_is_directory=True)
    for alias in ("a", "b", "y", "z"):
        (train / f"{alias}_cat").symlink_to(train / "cat", target_is_directory=True)
    (train / "hare").symlink_to(pets / "val" / "dog", target_is_directory=True)
    tree = list_images(train)
    assert tree.classes == ["cat", "dog", "hare"]
    assert len(tree.files) == 23
    assert len({os.path.realpath(train / file) for file in tree.files}) == 23


def test_a_link_to_nowhere_is_a_bad_file(pets: Path) -> None:
    (pets / "train" / "cat" / "gone.png").symlink_to(pets / "nowhere.png")
    data = ImageFolders(pets / "train", image_size=16, batch_size=4, max_bad_fraction=0.05)
    with pytest.warns(UserWarning, match=r"1 of 21 files .*\n  cat/gone\.png: No such file or directory"):
        data.setup()


def test_the_order_of_files_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{a}/{b}.png" for a in "xyz" for b in "pqr"]
    lists = []
    for attempt in range(2):
        for name in random.Random(attempt).sample(names, len(names)):
            path = tmp_path / str(attempt) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        lists.append(list_images(tmp_path / str(attempt)).files)
    assert lists == [names, names]


# --------------------------------------------------------------------------------------------------------- bad inputs


def test_a_missing_folder_is_named_with_the_likely_one(pets: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*tran: .* has no tran\. Did you mean .*/train\?"):
        ImageFolders(pets / "tran", image_size=16, batch_size=4)
    with pytest.raises(NotADirectoryError, match=r"000\.png is a file, where a folder of images is wanted"):
        ImageFolders(pets / "train" / "cat" / "000.png", image_size=16, batch_size=4)


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    (tmp_path / "more.csv").touch()
    (tmp_path / "archive.tar").touch()
    with pytest.raises(
        ValueError, match=r"No images in .*: its files are 2 \.csv, 1 \.tar\. Images are files that end in"
    ):
        ImageFolders(tmp_path, image_size=16, batch_size=4).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No images in .*empty: it holds no files at all"):
        ImageFolders(tmp_path / "empty", image_size=16, batch_size=4).setup()


def test_fewer_images_than_one_global_batch_are_refused_before_training(pets: Path) -> None:
    data = ImageFolders(pets / "train", image_size=16, batch_size=32)
    with pytest.raises(
        ValueError, match=r"There are 20 training images, fewer than one global batch of 32 \(1 rank x "
    ):
        data.train_dataloader()


def test_bad_files_within_the_budget_are_listed_and_left_out(pets: Path) -> None:
    (pets / "train" / "cat" / "html.jpg").write_text("<html>404</html>")
    (pets / "train" / "dog" / "empty.png").touch()
    cut = pets / "train" / "dog" / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-400])
    write_images(pets / "train" / "dog" / "tiny", 1, (16, 4))
    data = ImageFolders(pets / "train", image_size=16, batch_size=4, num_workers=0, max_bad_fraction=0.2)
    with pytest.warns(UserWarning, match=r"4 of 24 files in .*train are no usable images:") as caught:
        data.setup()
    message = str(caught[0].message)
    assert "cat/html.jpg: its contents are none of JPEG, PNG, WEBP, BMP, TIFF, GIF" in message
    assert "dog/empty.png: its contents are none of" in message
    assert "dog/cut.jpg: its pixels are cut short" in message
    assert "dog/tiny/000.png: 16 x 4 pixels are smaller than minimum_size=8" in message
    assert set(data.bad_files["train"]) == {"cat/html.jpg", "dog/empty.png", "dog/cut.jpg", "dog/tiny/000.png"}
    assert data.num_images("train") == 20
    batches = list(data.bank_dataloader())
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0] * 10 + [1] * 10


def test_more_bad_files_than_the_budget_are_fatal(pets: Path) -> None:
    (pets / "train" / "cat" / "html.jpg").write_text("<html>404</html>")
    data = ImageFolders(pets / "train", image_size=16, batch_size=4)
    with pytest.raises(
        ValueError,
        match=r"1 of 21 files in .* are no usable images:\n  cat/html\.jpg: its contents are none of .*\n"
        r"That is more than max_bad_fraction=0\.01 allows\. Remove or repair them",
    ):
        data.setup()


def test_images_smaller_than_the_minimum_are_refused(pets: Path) -> None:
    data = ImageFolders(pets / "train", image_size=16, batch_size=4, minimum_size=32)
    with pytest.raises(
        ValueError, match=r"20 of 20 files (.*\n)+  cat/000\.png: 16 x 16 pixels are smaller than minimum_size=32"
    ):
        data.setup()


def test_validation_classes_unlike_the_training_classes_are_named(pets: Path) -> None:
    (pets / "val" / "cat").rename(pets / "val" / "cats")
    data = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=4)
    with pytest.raises(
        ValueError,
        match=r"The validation classes are unlike the training classes\. "
        r"Only in validation: cats \(did you mean cat\?\)\. Only in training: cat\.",
    ):
        data.setup()


def test_classes_on_one_side_only_are_refused(pets: Path) -> None:
    write_images(pets / "val", 1)
    data = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=4)
    with pytest.raises(ValueError, match="The training images have 2 classes and the validation images have none"):
        data.setup()
    with pytest.raises(ValueError, match="The validation images have 1 classes and the training images have none"):
        check_same_classes(None, ["cat"])
    with pytest.raises(ValueError, match="The validation classes b, a are in another order than the training's a, b"):
        check_same_classes(["a", "b"], ["b", "a"])
    unlabelled = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=4, labelled=False, num_workers=0)
    unlabelled.setup()
    assert unlabelled.num_classes is None
    assert sorted(next(iter(unlabelled.train_dataloader()))) == ["image", "index"]


def test_validation_inside_the_training_folder_is_refused(pets: Path) -> None:
    with pytest.raises(ValueError, match=r"val lies inside the training folder .* so its images would be trained on"):
        ImageFolders(pets, pets / "val", image_size=16, batch_size=4)


def test_an_impossible_image_size_is_named(pets: Path) -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, but is 0"):
        ImageFolders(pets / "train", image_size=0, batch_size=4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_in_the_middle_of_a_file_stops_the_run_and_names_the_file(pets: Path, num_workers: int) -> None:
    path = pets / "train" / "cat" / "004.png"
    Image.effect_noise((64, 64), 50).save(path)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    path.write_bytes(contents)
    data = ImageFolders(pets / "train", image_size=16, batch_size=4, num_workers=num_workers)
    with pytest.raises(LoadingError, match=r"cat/004\.png has a good header but does not decode: .*verify_pixels=True"):
        list(data.bank_dataloader())
    verified = ImageFolders(pets / "train", image_size=16, batch_size=4, verify_pixels=True)
    with pytest.raises(ValueError, match=r"1 of 20 files in .*\n  cat/004\.png: "):
        verified.setup()


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_a_file_cut_short_is_found_without_decoding_all_files(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    assert find_fault(path, minimum_size=8) is None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    assert find_fault(path, minimum_size=8) is not None
    path.write_bytes(whole + b"appended by a camera")
    assert find_fault(path, minimum_size=8) is None


# ------------------------------------------------------------------------------------------------------------ batches


def test_batches_hold_what_torchvision_reads(cifar10_folder: Path) -> None:
    data = ImageFolders(cifar10_folder / "train", image_size=32, batch_size=30, num_workers=2, seed=1)
    theirs = ImageFolder(cifar10_folder / "train")
    loader = data.train_dataloader()
    assert len(loader) == 6
    seen = []
    for batch in loader:
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (30, 3, 32, 32)
        assert batch["index"].dtype == batch["label"].dtype == torch.int64
        for image, index, label in zip(batch["image"], batch["index"].tolist(), batch["label"].tolist(), strict=True):
            picture, class_number = theirs[index]
            torch.testing.assert_close(image, tv.pil_to_tensor(picture), rtol=0, atol=0)
            assert label == class_number
            assert data.train_files[index] in theirs.samples[index][0]
        seen += batch["index"].tolist()
    assert len(seen) == len(set(seen)) == 180


def test_images_are_resized_and_cropped_to_the_stored_square(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, size in enumerate([(40, 60, 3), (61, 35, 3), (32, 32, 3), (20, 24, 3)]):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / f"{k}.png")
    data = ImageFolders(tmp_path, image_size=32, batch_size=4, num_workers=0)
    (batch,) = data.bank_dataloader()
    for image, file in zip(batch["image"], data.train_files, strict=True):
        whole = tv.pil_to_tensor(Image.open(tmp_path / file))
        expected = tv.center_crop(tv.resize(whole, [32], antialias=True), [32])
        torch.testing.assert_close(image, expected, rtol=0, atol=0)


def test_bank_and_validation_give_every_image_once_in_stored_order(pets: Path) -> None:
    data = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=8, num_workers=0)
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    assert torch.cat([batch["index"] for batch in data.bank_dataloader()]).tolist() == list(range(20))
    validation = data.val_dataloader()
    assert torch.cat([batch["label"] for batch in validation]).tolist() == [0, 0, 0, 1, 1, 1]
    assert data.val_files == [f"{name}/{k:03d}.png" for name in ("cat", "dog") for k in range(3)]


def test_without_a_validation_folder_there_is_no_validation(pets: Path) -> None:
    data = ImageFolders(pets / "train", image_size=16, batch_size=8)
    assert data.val_dataloader() == []
    assert data.val_files == []


def test_the_background_reaches_transparent_files(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "x.png")
    data = ImageFolders(tmp_path, image_size=16, batch_size=1, num_workers=0, background=(1, 2, 3))
    (batch,) = data.bank_dataloader()
    assert batch["image"][0, :, 5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_leave_the_global_random_state_alone(pets: Path, num_workers: int) -> None:
    data = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=4, num_workers=num_workers)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    for loader in (data.train_dataloader(), data.val_dataloader(), data.bank_dataloader()):
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            assert len(list(loader)) == len(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_workers_change_nothing_about_the_batches(pets: Path) -> None:
    epochs = []
    for num_workers in (0, 1, 2):
        loader = ImageFolders(pets / "train", image_size=16, batch_size=4, num_workers=num_workers).train_dataloader()
        indices = []
        for epoch in (3, 1):
            loader.sampler.set_epoch(epoch)
            indices.append([batch["index"].tolist() for batch in loader])
        epochs.append(indices)
    assert epochs[0] == epochs[1] == epochs[2]
    assert epochs[0][0] != epochs[0][1]


def test_names_that_are_not_ascii_are_found_and_read(tmp_path: Path) -> None:
    write_images(tmp_path / "größe" / "日本", 2)
    data = ImageFolders(tmp_path, image_size=16, batch_size=2, num_workers=0)
    (batch,) = data.bank_dataloader()
    assert data.train_files == ["größe/日本/000.png", "größe/日本/001.png"]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1]


def test_all_images_can_be_taken_into_memory(pets: Path) -> None:
    folders = ImageFolders(pets / "train", pets / "val", image_size=16, batch_size=3, num_workers=0, seed=4)
    tensors = folders.as_tensors()
    assert tensors.classes == folders.classes
    assert tensors.num_images("val") == 6
    for from_files, from_memory in zip(folders.train_dataloader(), tensors.train_dataloader(), strict=True):
        for key in ("image", "index", "label"):
            torch.testing.assert_close(from_memory[key], from_files[key], rtol=0, atol=0)
