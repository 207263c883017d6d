"""The shell: what it prints, what it writes, and how it fails."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet, resnet18

from contrastive import load_encoder, recipes
from contrastive.cli import main
from contrastive.module import ContrastiveModule
from contrastive.runs.load import build, load_run
from tests.shell import draw_images

ROOT = Path(__file__).parent.parent
TINY = "--max-epochs 2 --batch-size 8"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of solid colours with noise, 32x32: two images of each to train on and two to test."""
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "simclr"
    assert main(f"fit simclr_resnet18_cifar10 --data-dir {images} {TINY} --width 8 --run-dir {folder}".split()) == 0
    return folder


@pytest.fixture(scope="session")
def full_width_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the published encoder."""
    folder = tmp_path_factory.mktemp("runs") / "moco"
    options = "--max-epochs 1 --batch-size 16 --queue-size 32 --batch-norm-groups 2"
    assert main(f"fit moco_resnet18_cifar10 --data-dir {images} {options} --run-dir {folder}".split()) == 0
    return folder


def error_of(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and all that was written to stderr."""
    code = main(words.split())
    return code, capsys.readouterr().err


def test_a_run_leaves_its_record_metrics_checkpoint_and_pictures(run: Path) -> None:
    assert {file.name for file in run.iterdir()} >= {
        "run.json",
        "metrics.csv",
        "checkpoints",
        "pairs.png",
        "curves.png",
    }
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "sha256.json"}
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    logged = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "train/lr", "train/images_per_s", "knn/top1", "linear_probe/top1"} <= logged
    assert {row["epoch"] for row in rows} == {"0", "1"}


def test_a_checkpoint_alone_gives_the_run_back(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "moved.ckpt"
    alone.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    from_folder, from_file = load_run(run), load_run(alone)
    assert from_file.name == from_folder.name == "simclr_resnet18_cifar10"
    assert from_file.arguments == json.loads((run / "run.json").read_text())["arguments"]
    assert from_file.epochs == 2
    saved = torch.load(alone, weights_only=True)["state_dict"]
    for name, weight in from_file.recipe.method.state_dict().items():
        assert torch.equal(weight, saved[name]), name


def test_evaluate_reports_trained_features_beside_what_there_is_without_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--baselines"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((run / "evaluation.json").read_text())
    assert record["encoder"]["name"] == "simclr_resnet18_cifar10, 2 epochs"
    assert record["encoder"]["checkpoint"] == "last.ckpt"
    names = [baseline["encoder"]["name"] for baseline in record["baselines"]]
    assert names == ["raw pixels, 16 x 16", "histogram of 512 colours", "untrained encoder"]
    for one in (record, *record["baselines"]):
        (data,) = one["data_sets"]
        assert [result["protocol"] for result in data["results"]] == ["linear", "knn-lightly", "knn-dino"]
        assert all(f"{100 * result['mean']['top1']:.2f}" in printed for result in data["results"])
    weights = [one["encoder"]["weights_sha256"] for one in (record, *record["baselines"])]
    assert len(set(weights)) == 3  # neither pixels nor colours have any


def test_evaluation_of_the_embedded_features_agrees_with_evaluate(run: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(run)]) == 0
    for split in ("train", "val"):
        assert main(["embed", str(run), "--output", str(tmp_path / f"{split}.npz"), "--split", split]) == 0
    bank, test = np.load(tmp_path / "train.npz"), np.load(tmp_path / "val.npz")
    unit = {id(one): one["features"] / np.linalg.norm(one["features"], axis=1, keepdims=True) for one in (bank, test)}
    votes = np.exp(unit[id(test)] @ unit[id(bank)].T / 0.07) @ np.eye(10)[bank["labels"]]  # k is the whole bank
    expected = float((votes.argmax(1) == test["labels"]).mean())
    assert scores_in(run)["knn-dino"]["top1"] == pytest.approx(expected)


def scores_in(run: Path) -> dict[str, dict[str, float]]:
    """The mean scores of a run's evaluation, by protocol."""
    (data,) = json.loads((run / "evaluation.json").read_text())["data_sets"]
    return {result["protocol"]: result["mean"] for result in data["results"]}


def test_embed_names_the_file_and_class_of_every_row(run: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "features.npz"
    assert main(["embed", str(run), "--output", str(file)]) == 0
    arrays = np.load(file)
    assert arrays["features"].shape == (20, 64)
    assert arrays["features"].dtype == np.float32
    expected = sorted(path.relative_to(images / "test").as_posix() for path in (images / "test").rglob("*.png"))
    assert arrays["files"].tolist() == expected
    assert arrays["index"].tolist() == list(range(20))
    assert [arrays["classes"][label] for label in arrays["labels"]] == [name.split("/")[0] for name in expected]
    pixels = torch.from_numpy(np.array(Image.open(images / "test" / expected[7]))).permute(2, 0, 1)[None]
    method = load_run(run).recipe.method
    with torch.no_grad():
        feature = method.encoder(method.make_views.evaluation_view(pixels))[0]
    np.testing.assert_allclose(arrays["features"][7], feature.numpy(), rtol=1e-4, atol=1e-5)


def test_exported_weights_load_into_plain_torchvision_with_the_printed_lines(
    full_width_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", str(full_width_run), "--output", str(tmp_path / "encoder.safetensors")]) == 0
    printed = capsys.readouterr().out
    code = [line for line in printed.splitlines() if line.startswith(("from", "model"))]
    assert len(code) == 3
    assert "contrastive" not in "".join(code)
    names: dict[str, object] = {}
    exec("\n".join(code), names)
    model = names["model"]
    assert type(model) is ResNet
    pixels = torch.rand(4, 3, 32, 32)
    ours = load_run(full_width_run).recipe.method.encoder
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels), ours(pixels), rtol=1e-4, atol=1e-4)

    by_hand = resnet18()
    by_hand.conv1, by_hand.maxpool, by_hand.fc = (
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.Identity(),
        nn.Identity(),
    )
    by_hand.load_state_dict(ours.state_dict(), strict=True)


def test_a_narrow_encoder_is_exported_with_lines_that_load_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", str(run), "--output", str(tmp_path / "encoder.safetensors")]) == 0
    names: dict[str, object] = {}
    exec("\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith(("from", "model"))), names)
    model, pixels = names["model"], torch.rand(4, 3, 32, 32)
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels), load_run(run).recipe.method.encoder(pixels))


def test_a_run_whose_images_are_gone_can_still_be_exported(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["contrastive"]["arguments"]["data_dir"] = str(tmp_path / "gone")
    torch.save(checkpoint, tmp_path / "orphan.ckpt")
    assert main(["export", str(tmp_path / "orphan.ckpt")]) == 0
    assert (tmp_path / "encoder.safetensors").exists()


def test_images_that_have_moved_are_found_by_data_dir(run: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["contrastive"]["arguments"]["data_dir"] = str(tmp_path / "gone")
    torch.save(checkpoint, tmp_path / "orphan.ckpt")
    output = str(tmp_path / "features.npz")
    assert main(["embed", str(tmp_path / "orphan.ckpt"), "--output", output]) == 1
    assert main(["embed", str(tmp_path / "orphan.ckpt"), "--output", output, "--data-dir", str(images)]) == 0


def test_a_run_is_fine_tuned_on_images_that_have_moved(run: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["contrastive"]["arguments"]["data_dir"] = str(tmp_path / "gone")
    torch.save(checkpoint, tmp_path / "orphan.ckpt")
    words = f"finetune {tmp_path / 'orphan.ckpt'} --labels 0.5 --max-epochs 1 --data-dir {images}"
    assert main(words.split()) == 0
    (result,) = json.loads((tmp_path / "finetune.json").read_text())
    assert (result["num_labelled"], result["num_train"], result["num_val"]) == (10, 20, 20)
    assert (tmp_path / result["weights"]).exists()


def dino_run(images: Path, file: Path) -> ContrastiveModule:
    """A checkpoint of a run of DINO whose teacher is not its student, and the method in it."""
    arguments = {"data_dir": str(images), "width": 4, "num_prototypes": 16}
    method = build("dino_resnet18_cifar10", arguments).method
    with torch.no_grad():
        for value in method.momentum_encoder.parameters():
            value.add_(0.1 * torch.rand_like(value))
    entry = {"recipe": "dino_resnet18_cifar10", "arguments": arguments}
    torch.save({"state_dict": method.state_dict(), "contrastive": entry, "epoch": 0}, file)
    return method.eval()


def test_what_a_run_of_dino_gives_is_its_teacher(images: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "dino.ckpt", tmp_path / "encoder.safetensors"
    method = dino_run(images, run)
    assert main(f"export {run} --output {output}".split()) == 0
    assert main(f"finetune {run} --labels 0.5 --max-epochs 1 --freeze 5".split()) == 0
    assert main(f"embed {run} --output {tmp_path / 'features.npz'}".split()) == 0
    teacher = method.momentum_encoder
    for loaded in (load_encoder(run), load_encoder(output), load_encoder(tmp_path / "finetuned-1.safetensors")):
        weights = loaded.state_dict()
        assert all(value.equal(weights[name]) for name, value in teacher.state_dict().items())
    files = np.load(tmp_path / "features.npz")
    pixels = np.stack([np.array(Image.open(images / "test" / name)) for name in files["files"]])
    with torch.no_grad():
        expected = teacher(method.make_views.evaluation_view(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(files["features"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_fine_tuned_teacher_trains_all_of_its_weights(images: Path, tmp_path: Path) -> None:
    method = dino_run(images, tmp_path / "dino.ckpt")
    assert main(f"finetune {tmp_path / 'dino.ckpt'} --labels 0.5 --max-epochs 1".split()) == 0
    tuned = load_encoder(tmp_path / "finetuned-1.safetensors")
    for name, value in tuned.named_parameters():
        assert not value.equal(method.momentum_encoder.get_parameter(name)), name


def test_onnx_gives_the_same_features(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    file = tmp_path / "encoder.onnx"
    words = ["export", str(run), "--output", str(tmp_path / "encoder.safetensors"), "--onnx", str(file)]
    assert main(words) == 0
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = load_run(run).recipe.method.encoder(pixels)
    (features,) = reference.ReferenceEvaluator(str(file)).run(None, {"images": pixels.numpy()})
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_recipes_are_listed_with_their_first_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in recipes.names():
        assert f"{name} {recipes.summary(name)[:20]}" in printed


def test_views_of_a_folder_of_images_of_any_sizes_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 50), (200, 30 * number, 7)).save(tmp_path / "data" / "train" / f"{number}.jpg")
    Image.new("RGB", (30, 50)).save(tmp_path / "data" / "not_trained_on.jpg")
    sizes = []
    for options in ("", "--recipe simclr_resnet18_cifar10 --num-images 2"):
        file = tmp_path / "new" / "views.png"
        assert main(f"views --data-dir {tmp_path / 'data'} --out {file} {options}".split()) == 0
        with Image.open(file) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1]
    printed = capsys.readouterr().out
    assert f"Wrote {file}: 3 images and their views\nWrote {file}: 2 images and their views" in printed
    assert main(f"views --data-dir {tmp_path / 'dta'} --out {file}".split()) == 1
    assert "error: There is no folder " in capsys.readouterr().err


def test_views_without_a_folder_are_of_the_recipes_own_images(tmp_path: Path) -> None:
    pictures = []
    for seed in (0, 0, 1):
        assert main(f"views --out {tmp_path / 'views.png'} --num-images 1 --seed {seed}".split()) == 0
        pictures.append((tmp_path / "views.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_the_shell_says_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "contrastive fit [RECIPE] [--option VALUE ...]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fti", "There is no command 'fti'. Did you mean fit?"),
        (
            "fit simclr_resnet18_cifar1",
            "There is no recipe 'simclr_resnet18_cifar1'. Did you mean simclr_resnet18_cifar10?",
        ),
        ("fit simclr_resnet18_cifar10 --epochs 3", "There is no option --epochs. Did you mean --max-epochs?"),
        ("fit simclr_resnet18_cifar10 --data-dir x --lr-per-256 fast", "--lr-per-256 takes a number, got fast."),
        ("embed x --output y --split tset", "--split takes train or val, got tset."),
        ("views", "Missing: --out. Add --help to see all options."),
        ("views --out x --recipe dmeo", "There is no recipe 'dmeo'. Did you mean demo?"),
        ("views --out x --num-images 0", "--num-images takes 1 or more, got 0."),
        ("views --output x", "There is no option --output. Did you mean --out?"),
        (
            "views --out x --recipe moco_resnet18_cifar10",
            "Missing: --data-dir, for recipe moco_resnet18_cifar10 has no images of its own. "
            "Add --help to see all options.",
        ),
    ],
)
def test_a_command_that_is_not_understood_gets_one_line_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(words, capsys) == (2, f"error: {message}\n")


@pytest.mark.parametrize(("option", "folder"), [(" --data-dir missing", "missing"), ("", "cifar10")])
def test_a_missing_folder_is_one_line_and_leaves_no_run_behind(
    option: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = error_of(f"fit simclr_resnet18_cifar10{option}", capsys)
    assert code == 1
    assert error.startswith(f"error: There is no folder {tmp_path / folder / 'train'}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "some.ckpt"),
        (None, "does not say which recipe it came from"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours_is_named(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, file)
    else:
        file.write_bytes(content)
    code, error = error_of(f"export {file}", capsys)
    assert code == 1
    assert message in error
    assert error.count("\n") == 1


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "contrastive", *words], capture_output=True, text=True, cwd=ROOT)


def test_a_failing_process_exits_with_1_and_shows_a_traceback_only_with_debug() -> None:
    plain, debugged = shell("export", "missing"), shell("export", "missing", "--debug")
    assert plain.returncode == debugged.returncode == 1
    line = "error: There is no run or checkpoint at missing. Runs lie in runs/ unless --run-dir said else.\n"
    assert plain.stderr == line
    assert debugged.stderr.startswith("Traceback (most recent call last):")
    assert debugged.stderr.endswith(line)


@pytest.mark.parametrize("recipe", ["simclr_resnet18_cifar10", "moco_resnet18_cifar10"])
def test_recipes_train_on_real_cifar10_files(recipe: str, cifar10_folder: Path, tmp_path: Path) -> None:
    words = f"fit {recipe} --data-dir {cifar10_folder} --max-epochs 1 --limit 5 --batch-size 16 --width 8"
    assert main([*words.split(), "--run-dir", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"


def test_the_demo_ends_with_its_table_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--max-epochs 1 --num-train 60 --num-test 20 --batch-size 20 --width 4"
    assert main(["fit", *small.split()]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "demo: SimCLR learns drawn shapes whose names it is never told"
    assert lines[1].startswith("On ")
    rows = ["raw pixels, 16 x 16", "histogram of 512 colours", "untrained encoder", "demo, 1 epochs"]
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("Side by side")) :]
    assert [row for line in table for row in rows if line.startswith(row)] == rows
    assert lines[-1].startswith("Next: ")
    assert lines[-1].endswith(f"contrastive export runs/{folder.name}")
    assert {"pairs.png", "curves.png", "evaluation.md"} <= {file.name for file in folder.iterdir()}

    after_training = scores_in(folder)
    assert main(["evaluate", str(folder)]) == 0
    assert scores_in(folder) == after_training
