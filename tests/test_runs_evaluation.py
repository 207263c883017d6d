"""An encoder through protocols on data sets, as ``contrastive evaluate`` does it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from contrastive.cli import main
from contrastive.encoders import resnet10
from contrastive.evaluation.protocols import PROTOCOLS
from contrastive.runs.evaluation import choose_protocols
from contrastive.runs.export import save_encoder
from contrastive.runs.signature import UsageError

NUM_CLASSES, IN_TRAIN, IN_TEST = 6, 4, 3


def write_images(folder: Path, *, brightness: int = 0) -> Path:
    """Class folders of noise whose mean tells the class; sizes that nothing divides."""
    noise = np.random.default_rng(brightness)
    for split, count in (("train", IN_TRAIN), ("test", IN_TEST)):
        for label in range(NUM_CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 120, (32, 32, 3)) + 20 * label + brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"class{label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("some"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder's file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_encoder(resnet10(width=4), file)
    return file


def evaluated(weights: Path, images: Path, output: Path, options: str = "--protocol lda") -> dict[str, Any]:
    """The record that the shell wrote."""
    words = f"evaluate {weights} --image-size 32 --data-dir {images} --output {output} --no-cache {options}"
    assert main(words.split()) == 0
    record: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return record


def pixels_of(folder: Path) -> tuple[Any, Any]:
    """All images of a split in [0, 1], and their labels, read by Pillow alone."""
    files = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file)) / 255.0 for file in files])
    return images, np.array([int(file.parent.name.removeprefix("class")) for file in files])


def test_baselines_of_pixels_reach_what_scikit_learn_reaches_on_the_files(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    record = evaluated(weights, images, tmp_path, "--protocol knn-dino --baselines")
    baseline = next(one for one in record["baselines"] if one["encoder"]["name"].startswith("raw pixels"))
    (train, labels), (test, test_labels) = pixels_of(images / "train"), pixels_of(images / "test")

    def halved(pixels: Any) -> Any:
        """16 x 16, channel by channel as the features are."""
        blocks = pixels.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))
        return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)

    neighbours = KNeighborsClassifier(
        len(train), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07), algorithm="brute"
    ).fit(halved(train), labels)
    (trial,) = baseline["data_sets"][0]["results"][0]["trials"]
    assert trial["num_train"] == len(train)
    assert trial["num_test"] == len(test)
    assert trial["scores"]["top1"] == pytest.approx(neighbours.score(halved(test), test_labels))


def test_every_seed_is_a_trial_and_the_mean_is_theirs(weights: Path, images: Path, tmp_path: Path) -> None:
    record = evaluated(weights, images, tmp_path, "--protocol linear --num-seeds 3 --seed 5")
    (result,) = record["data_sets"][0]["results"]
    scores = [trial["scores"]["top1"] for trial in result["trials"]]
    assert [trial["seed"] for trial in result["trials"]] == [5, 6, 7]
    assert result["mean"]["top1"] == pytest.approx(np.mean(scores))
    assert result["std"]["top1"] == pytest.approx(np.std(scores, ddof=1))


def test_training_images_that_are_test_images_too_are_left_out_and_counted(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_images(tmp_path / "leaky")
    (folder / "train" / "class0" / "copy.png").write_bytes((folder / "test" / "class3" / "1.png").read_bytes())
    (data,) = evaluated(weights, folder, tmp_path / "without")["data_sets"]
    assert data["duplicates_removed"] == 1
    assert data["results"][0]["trials"][0]["num_train"] == NUM_CLASSES * IN_TRAIN
    assert data["results"][0]["trials"][0]["num_test"] == NUM_CLASSES * IN_TEST
    assert "1 training images are test images too and were left out" in " ".join(capsys.readouterr().out.split())
    (data,) = evaluated(weights, folder, tmp_path / "with", "--protocol lda --keep-duplicates")["data_sets"]
    assert data["duplicates_removed"] is None
    assert data["results"][0]["trials"][0]["num_train"] == NUM_CLASSES * IN_TRAIN + 1


def test_several_data_sets_make_the_transfer_table(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = write_images(tmp_path / "other", brightness=7)
    record = evaluated(weights, images, tmp_path / "out", f"--protocol lda --transfer pets={pets}")
    assert [data["name"] for data in record["data_sets"]] == [images.name, "pets"]
    printed = capsys.readouterr().out
    assert "Side by side" in printed
    assert "mean per class" in printed.split("Side by side")[1]  # customary for pets


def test_two_processes_find_what_one_finds_to_the_last_image(weights: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "odd")
    for split in ("train", "test"):
        (folder / split / "class2" / "0.png").unlink()  # 23 and 17 images: two processes do not divide them
    options = "--protocol linear knn-dino lda byol --max-epochs 1"
    (one,) = evaluated(weights, folder, tmp_path / "one", options)["data_sets"]
    words = f"evaluate {weights} --image-size 32 --data-dir {folder} --output {tmp_path / 'two'} --no-cache {options}"
    subprocess.run([sys.executable, "-m", "contrastive", *words.split(), "--devices", "2"], check=True, timeout=300)
    (two,) = json.loads((tmp_path / "two" / "evaluation.json").read_text())["data_sets"]
    assert one["duplicates_removed"] == two["duplicates_removed"] == 0
    for alone, shared in zip(one["results"], two["results"], strict=True):
        assert alone["mean"] == shared["mean"], alone["protocol"]
        assert alone["trials"][0]["confusion"] == shared["trials"][0]["confusion"]
        assert shared["trials"][0]["num_test"] == 17


def test_features_are_extracted_once_for_all_calls(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = f"evaluate {weights} --image-size 32 --data-dir {images} --output {tmp_path / 'out'} --protocol lda"
    assert main(words.split()) == 0
    kept = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(kept) == 2  # training and test images
    first = json.loads((tmp_path / "out" / "evaluation.json").read_text())

    def never(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("contrastive.encoders.ResNetEncoder.forward", never)
    assert main(words.replace("lda", "lda ridge").split()) == 0
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == kept
    results = [{one["protocol"]: one["mean"] for one in record["data_sets"][0]["results"]} for record in (first, again)]
    assert results[1]["lda"] == results[0]["lda"]
    seconds = [record["data_sets"][0]["extraction_seconds"] for record in (first, again)]
    assert seconds[0] > 0
    assert seconds[1] is None
    assert "ridge" in results[1]


def test_a_model_of_timm_is_evaluated_from_nothing_but_an_image_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = f"evaluate timm:resnet10t --pretrained false --image-size 32 --data-dir {images}"
    assert main(words.split()) == 0
    folder = tmp_path / "runs" / "evaluate-timm-resnet10t-untrained"
    record = json.loads((folder / "evaluation.json").read_text())
    protocols = [result["protocol"] for result in record["data_sets"][0]["results"]]
    assert protocols == ["linear", "knn-lightly", "knn-dino"]
    assert (folder / "evaluation.md").read_text().count("timm:resnet10t, untrained") >= 1
    assert len(list((folder / "evaluation").glob("*.png"))) == 2 * len(protocols)
    assert "timm:resnet10t, untrained" in capsys.readouterr().out


def test_a_protocol_that_trains_can_make_fewer_passes(weights: Path, images: Path, tmp_path: Path) -> None:
    record = evaluated(weights, images, tmp_path, "--protocol moco-v2 lda --max-epochs 2")
    by_name = {result["protocol"]: result for result in record["data_sets"][0]["results"]}
    assert by_name["moco-v2"]["hyper_parameters"]["epochs"] == 2
    assert by_name["moco-v2"]["trials"][0]["details"]["epochs"] == 2
    assert PROTOCOLS["moco-v2"].epochs == 100  # nobody else's


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_scores_a_small_encoder(name: str, weights: Path, images: Path, tmp_path: Path) -> None:
    epochs = "--max-epochs 1" if hasattr(PROTOCOLS[name], "epochs") else ""
    record = evaluated(weights, images, tmp_path, f"--protocol {name} {epochs}")
    (result,) = record["data_sets"][0]["results"]
    (trial,) = result["trials"]
    assert trial["num_test"] == NUM_CLASSES * IN_TEST
    assert trial["scores"]
    assert result["hyper_parameters"]["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--protocol lineer", "There is no protocol 'lineer'. Did you mean linear?"),
        ("--transfer pets", "--transfer takes NAME=FOLDER, each name once, got 'pets'."),
        ("--transfer a=x a=y", "--transfer takes NAME=FOLDER, each name once, got 'a=y'."),
        ("--num-seeds 0", "--num-seeds takes 1 or more, got 0."),
        (
            "--protocol lda --max-epochs 3",
            "--max-epochs is for protocols that train, which are simclr-sgd, moco-v2",
        ),
        ("--max-epochs 0", "--max-epochs takes 1 or more, got 0."),
        ("--seed -1", "--seed takes 0 or more, got -1."),
        ("--transfer voc2007=x", "voc2007 has several labels an image"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    options: str, message: str, weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"evaluate {weights} --data-dir {images} --output {tmp_path / 'out'} {options}"
    assert main(words.split()) in (1, 2)
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(f"evaluate {weights} --data-dir {images} --output {tmp_path / 'file'}".split()) == 1
    assert capsys.readouterr().err.startswith(f"error: Nothing can be written to {tmp_path / 'file'}: ")


def test_two_data_sets_of_one_name_are_refused_before_they_are_encoded(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"evaluate {weights} --data-dir {images} --output {tmp_path} --transfer {images.name}={images}"
    assert main(words.split()) == 2
    assert f"Two data sets are called '{images.name}'." in capsys.readouterr().err
    assert not (tmp_path / "evaluation.json").exists()


def test_images_of_one_class_are_no_task(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images")
    for split in ("train", "test"):
        for label in range(1, NUM_CLASSES):
            shutil.rmtree(folder / split / f"class{label}")
    assert main(f"evaluate {weights} --data-dir {folder} --output {tmp_path / 'out'} --image-size 32".split()) == 1
    assert "All images of images are of one class, ['class0']: nothing to tell apart." in capsys.readouterr().err


def test_without_a_folder_of_images_the_error_names_the_option(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(weights)]) == 2
    assert capsys.readouterr().err.startswith("error: Missing: --data-dir, a folder with train/CLASS/*.jpg")


def test_protocols_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols"]) == 0
    printed = capsys.readouterr().out
    for name, protocol in PROTOCOLS.items():
        assert f"{name}: {' '.join((type(protocol).__doc__ or '').split('.')[0].split())}" in printed
        assert f"Source: {protocol.source}" in printed


def test_max_epochs_leaves_protocols_without_epochs_alone() -> None:
    chosen = choose_protocols(["lda", "mae"], max_epochs=3)
    assert chosen["lda"] is PROTOCOLS["lda"]
    assert chosen["mae"].source == PROTOCOLS["mae"].source
    with pytest.raises(UsageError, match="is for protocols that train, which are"):
        choose_protocols(["lda"], max_epochs=3)
