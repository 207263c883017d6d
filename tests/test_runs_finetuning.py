"""Fine-tuning on few or noisy labels: what it starts from, what it trains, what it writes down."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from contrastive import load_encoder
from contrastive.augmentations import (
    IMAGENET,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Views,
    dino_views,
    evaluation_views,
    simclr_views,
    views_from,
)
from contrastive.cli import main
from contrastive.data import ImageFolders, TensorImages
from contrastive.encoders import resnet10, resnet18, timm_encoder
from contrastive.methods import SupervisedBaseline
from contrastive.optim import sgd_cosine
from contrastive.runs.export import save_classifier
from contrastive.runs.finetuning import Settings, crops_and_flips, freeze, labelled, train_classifier
from contrastive.runs.load import build
from tests import tiny

DEMO = {"num_train": 60, "num_test": 30, "width": 4, "seed": 3}
VIEWS = simclr_views(8, blur=False, scale=(0.5, 1.0))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A checkpoint of the demo, tiny, as training would leave it: other weights than the untrained network's."""
    method = build("demo", DEMO).method
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in method.state_dict().items()
    }
    entry = {"recipe": "demo", "arguments": DEMO}
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": weights, "contrastive": entry, "epoch": 4}, file)
    return file


def encoder_weights(checkpoint: Path) -> dict[str, Tensor]:
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("encoder."): value for name, value in saved.items() if name.startswith("encoder.")}


def results(checkpoint: Path) -> list[dict[str, Any]]:
    return json.loads((checkpoint.parent.parent / "finetune.json").read_text())


def test_one_network_starts_from_the_runs_weights_the_other_from_scratch_and_all_else_is_the_same(
    pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[dict[str, Tensor], Any, Settings, int]] = []

    def spied(encoder: nn.Module, views: Any, data: Any, settings: Settings, *, seed: int, callbacks: Any) -> Any:
        calls.append((copy.deepcopy(encoder.state_dict()), data, settings, seed))
        return train_classifier(encoder, views, data, settings, seed=seed, callbacks=callbacks)

    monkeypatch.setattr("contrastive.commands.finetune.train_classifier", spied)
    assert main(f"finetune {pretrained} --labels 0.5 --max-epochs 1 --freeze 1 --seed 7".split()) == 0
    (tuned, data, settings, seed), (scratch, *same) = calls
    assert same == [data, replace(settings, freeze=0), seed]
    saved, untrained = encoder_weights(pretrained), build("demo", {**DEMO, "seed": 7}).method.encoder.state_dict()
    for name, value in saved.items():
        assert torch.equal(tuned[name], value), name
        assert torch.equal(scratch[name], untrained[name]), name
    assert not torch.equal(tuned["conv1.weight"], scratch["conv1.weight"])


def test_every_result_is_kept_with_all_that_was_set(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"finetune {pretrained} --labels 0.5 --label-noise 0.4 --max-epochs 1".split()) == 0
    (first,) = results(pretrained)
    assert first["settings"] == {
        "labels": 0.5,
        "label_noise": 0.4,
        "freeze": 0,
        "max_epochs": 1,
        "batch_size": 30,
        "lr": pytest.approx(0.05 * 30 / 256),
        "weight_decay": 0.0,
        "layer_decay": None,
        "warmup_epochs": 0.0,
        "crop_min": 0.5,
        "devices": 1,
        "precision": "32-true",
    }
    counts = {name: first[name] for name in ("num_labelled", "num_train", "num_val", "epochs_pretrained", "seed")}
    assert counts == {"num_labelled": 30, "num_train": 60, "num_val": 30, "epochs_pretrained": 5, "seed": 0}
    assert 0 < first["num_wrong"] < 30
    assert {"commit", "versions", "hardware", "when"} <= first.keys()
    assert all(round(30 * value) == pytest.approx(30 * value, abs=1e-4) for value in first["top1"].values())
    printed = capsys.readouterr().out
    assert (
        f"30 of 60 training images have labels, {first['num_wrong']} of them wrong; seed 0\nSGD, lr 0.00586" in printed
    )
    assert "demo after 5 epochs, then 50 % of the labels, each wrong with probability 0.4" in printed
    for name, top1 in first["top1"].items():
        line = next(line for line in reversed(printed.splitlines()) if line.strip().startswith(name))
        assert line.split()[-2:] == [f"{100 * top1:.1f}", "%"]

    assert main(f"finetune {pretrained} --labels 0.5 --max-epochs 1 --num-seeds 2 --seed 4".split()) == 0
    kept, *added = results(pretrained)
    assert kept == first
    assert [(one["number"], one["seed"], one["num_wrong"]) for one in added] == [(2, 4, 0), (3, 5, 0)]
    assert {f"finetuned-{number}.safetensors" for number in (1, 2, 3)} <= {
        file.name for file in pretrained.parent.parent.iterdir()
    }
    both = [one["top1"]["fine-tuned"] for one in added]
    spread = f"{50 * sum(both):.1f} % ({100 * min(both):.1f} to {100 * max(both):.1f}, 2 seeds)"
    assert spread in capsys.readouterr().out


def test_load_encoder_reads_what_was_written_and_with_all_stages_frozen_that_is_the_runs_own(pretrained: Path) -> None:
    for stages in (5, 0):
        assert main(f"finetune {pretrained} --labels 0.5 --max-epochs 1 --freeze {stages}".split()) == 0
    frozen, trained = (
        load_encoder(pretrained.parent.parent / f"finetuned-{number}.safetensors").state_dict() for number in (1, 2)
    )
    for name, value in encoder_weights(pretrained).items():
        assert torch.equal(frozen[name], value), name
        assert not torch.equal(trained[name], value), name


@pytest.mark.parametrize(
    ("encoder", "plain"),
    [
        (resnet18(), lambda: torchvision.models.resnet18(num_classes=4)),
        (timm_encoder("test_vit", image_size=32), lambda: timm.create_model("test_vit", num_classes=4, img_size=32)),
    ],
)
def test_a_classifiers_weights_load_into_the_plain_model(
    encoder: nn.Module, plain: Callable[[], nn.Module], tmp_path: Path
) -> None:
    method = SupervisedBaseline(encoder, VIEWS, sgd_cosine(0.1), num_classes=4).eval()
    save_classifier(method, tmp_path / "all.safetensors")
    model, images = plain().eval(), torch.rand(2, 3, 32, 32)
    model.load_state_dict(load_file(tmp_path / "all.safetensors"), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images), method.classifier(encoder(images)))


def trained(encoder: nn.Module, *, views: Any = VIEWS, num_images: int = 24, **settings: Any) -> list[pl.Trainer]:
    """Train on images of four classes; the trainer, as callbacks see it."""
    seen: list[pl.Trainer] = []

    class Meddler(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(trainer)
            pl_module.train()

    size = views.views[0][0].size
    data = TensorImages(
        tiny.images(num_images, size),
        torch.arange(num_images) % 4,
        tiny.images(8, size),
        torch.arange(8) % 4,
        batch_size=8,
    )
    subset, _ = labelled(data, 1.0, 0.0, seed=0)
    wanted = Settings(**{"labels": 1.0, "max_epochs": 2, "batch_size": 8, **settings})
    train_classifier(encoder, views, subset, wanted.resolved(encoder, views, num_images), seed=0, callbacks=[Meddler()])
    return seen


@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_frozen_stages_keep_weights_and_statistics_to_the_bit_and_the_rest_moves(stages: int) -> None:
    encoder = resnet10(stem="small", width=4)
    before = copy.deepcopy(encoder.state_dict())
    trained(encoder, freeze=stages)
    stage_of = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    for name, value in encoder.state_dict().items():
        stays = stage_of[name.split(".")[0]] < stages
        assert torch.equal(value, before[name]) == stays, name


def test_what_the_pretraining_held_fixed_is_trained_too() -> None:
    encoder, views = timm_encoder("test_vit", image_size=32), simclr_views(32, blur=False)
    encoder.patch_embed.requires_grad_(False)
    encoder.pos_embed.requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    trained(encoder, views=views)
    assert all(not torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_transformers_first_stage_is_its_patches_with_their_positions(blocks: int) -> None:
    encoder = timm_encoder("test_vit", image_size=32)
    freeze(encoder, 1 + blocks)
    trains = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    first = ("patch_embed.", "cls_token", "pos_embed", *(f"blocks.{block}." for block in range(blocks)))
    assert trains == {name for name, _ in encoder.named_parameters() if not name.startswith(first)}
    freeze(encoder, 1 + len(encoder.blocks))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_layer_decay_reaches_the_optimizer() -> None:
    encoder, views = timm_encoder("test_vit", image_size=32), simclr_views(32, blur=False)
    rates = {}
    for group in trained(encoder, views=views, lr=1e-3, layer_decay=0.5)[0].optimizers[0].param_groups:
        assert group["betas"] == (0.9, 0.999)  # AdamW
        rates.update({id(parameter): group["initial_lr"] for parameter in group["params"]})
    depth = len(encoder.blocks)
    assert rates[id(encoder.patch_embed.proj.weight)] == pytest.approx(1e-3 * 0.5 ** (depth + 1))
    assert rates[id(encoder.blocks[0].attn.qkv.weight)] == pytest.approx(1e-3 * 0.5**depth)
    assert rates[id(encoder.blocks[-1].attn.qkv.weight)] == pytest.approx(1e-3 * 0.5)


def test_the_last_epoch_alone_is_validated() -> None:
    trainer = trained(resnet10(stem="small", width=4), max_epochs=3)[-1]
    assert trainer.check_val_every_n_epoch == 3
    assert trainer.global_step == 3 * 24 // 8


def test_what_is_left_open_is_as_published() -> None:
    resnet, vit = resnet10(width=4), timm_encoder("test_vit", image_size=32)
    one, ten = (
        Settings(labels=labels, batch_size=4096).resolved(resnet, simclr_views(224), images)
        for labels, images in ((0.01, 12_811), (0.1, 128_116))
    )
    assert (one.lr, one.weight_decay, one.warmup_epochs, one.layer_decay) == (pytest.approx(0.8), 0.0, 0.0, None)
    assert (one.max_epochs, ten.max_epochs) == (60, 30)  # SimCLR, appendix B.5
    assert one.crop_min == 0.08
    mae = Settings(labels=1.0, batch_size=32, devices=32).resolved(vit, simclr_views(32), 1_281_167)
    assert (mae.lr, mae.weight_decay, mae.layer_decay) == (pytest.approx(5e-4 * 4), 0.05, 0.65)
    assert (mae.max_epochs, mae.warmup_epochs) == (100, 5)  # FINETUNE.md of facebookresearch/mae


@pytest.mark.parametrize(
    ("num_labelled", "given", "devices", "expected"),
    [
        (100_000, None, 1, 255),  # 391 steps
        (1_000, None, 1, 250),
        (100, None, 1, 33),  # three steps
        (100, None, 2, 50),
        (50, None, 1, 50),
        (10, None, 1, 10),
        (1_000, 64, 1, 64),
        (10, 64, 1, 10),
        (10, 64, 2, 5),
    ],
)
def test_a_batch_is_never_larger_than_what_there_is(
    num_labelled: int, given: int | None, devices: int, expected: int
) -> None:
    wanted = Settings(labels=0.1, batch_size=given, devices=devices)
    assert wanted.resolved(resnet10(width=4), VIEWS, num_labelled).batch_size == expected


def test_training_sees_the_runs_crop_and_a_flip_and_evaluation_stays() -> None:
    for views in (simclr_views(16), dino_views(16, local_size=8)):
        ours = crops_and_flips(views, 0.3)
        (view,) = ours.views
        first = views.views[0][0]
        assert isinstance(first, RandomResizedCrop)
        crop = RandomResizedCrop(16, scale=(0.3, 1.0), interpolation=first.interpolation)
        assert list(view) == [crop, RandomHorizontalFlip(0.5), IMAGENET]
        images = tiny.images(4, 24)
        assert torch.equal(ours.evaluation_view(images), views.evaluation_view(images))
    for how in ("bilinear", "bicubic"):
        (view,) = crops_and_flips(evaluation_views(16, interpolation=how), 0.3).views
        crop = RandomResizedCrop(16, scale=(0.3, 1.0), interpolation=how)
        assert list(view) == [crop, RandomHorizontalFlip(0.5), IMAGENET]
    bare = crops_and_flips(simclr_views(16, normalize=None), 0.3)
    assert len(bare.views[0]) == 2


def test_images_are_read_from_files_at_their_own_sizes(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for label in range(2):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = np.full((20 + number, 24, 3), 40 + 150 * label, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / f"class{label}" / f"{number}.png")
    data = ImageFolders(tmp_path / "train", tmp_path / "val", batch_size=2, num_workers=0)
    subset, num_wrong = labelled(data, 0.5, 0.0, seed=0)
    encoder, views = resnet10(stem="small", width=4), simclr_views(16, blur=False)
    settings = Settings(labels=0.5, max_epochs=1).resolved(encoder, views, 4)
    outcome = train_classifier(encoder, views, subset, settings, seed=0)
    assert (len(subset.chosen), num_wrong, settings.batch_size) == (4, 0, 4)
    assert outcome.top1 in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_wrong_labels_are_counted_among_the_labelled_ones() -> None:
    data = tiny.data(400)
    subset, num_wrong = labelled(data, 0.25, 0.4, seed=1)
    assert num_wrong == int((subset.labels("train") != data.labels("train"))[subset.chosen].sum())
    assert len(subset.chosen) == 100
    assert 20 < num_wrong < 60


def test_data_without_labels_or_without_validation_images_is_refused() -> None:
    pixels = tiny.images(8)
    with pytest.raises(ValueError, match=r"^The data set has no labels to fine-tune on\. Give class folders, train/"):
        labelled(TensorImages(pixels, val_images=pixels, batch_size=4), 0.5, 0.0, seed=0)
    with pytest.raises(ValueError, match=r"^The data set has no validation images to measure accuracy on\. Give a "):
        labelled(TensorImages(pixels, torch.arange(8) % 2, batch_size=4), 0.5, 0.0, seed=0)


def test_views_that_name_no_size_are_refused() -> None:
    for views in (views_from(nn.Identity()), Views(((RandomHorizontalFlip(),),))):
        with pytest.raises(
            ValueError, match=r"has no RandomResizedCrop or CenterCrop\. Give views of contrastive\.aug"
        ):
            crops_and_flips(views, 0.3)


def test_stages_of_an_unknown_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Which stages ConvEncoder has is not known, so none can be frozen\. Leave"):
        freeze(tiny.ConvEncoder(), 1)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            "--freeze 6",
            1,
            "--freeze 6 is not possible: ResNetEncoder has 5 stages. Give 0 to 5; with 5, only the classifier is "
            "trained.",
        ),
        (
            "--layer-decay 0.7",
            1,
            "--layer-decay 0.7 is for vision transformers, and ResNetEncoder is none: it is trained by SGD at one rate "
            "for all layers. Leave it out.",
        ),
        ("--labels 10", 1, "The fraction of labels must lie in (0, 1], got 10.0. For all labels, take 1."),
        ("--label-noise 40", 1, "The probability that a label is wrong must lie in [0, 1], got 40.0."),
        ("--num-seeds 0", 2, "--num-seeds takes 1 or more, got 0."),
        ("--batch-size 0", 2, "--batch-size takes 1 or more, got 0."),
        ("--devices 0", 2, "--devices takes 1 or more, got 0."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_written(
    options: str, code: int, message: str, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"finetune {pretrained} {options}".split()) == code
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [file.name for file in pretrained.parent.parent.iterdir()] == ["checkpoints"]


def test_a_broken_list_of_results_is_named_before_any_training(
    pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretrained.parent.parent / "finetune.json"
    for content, reason in (("{", "cannot be read as JSON"), ("{}", "holds no list of results. Move it away.")):
        file.write_text(content)
        assert main(f"finetune {pretrained} --max-epochs 1".split()) == 1
        captured = capsys.readouterr()
        assert f"{file} {reason}" in captured.err
        assert "epoch" not in captured.out
        assert file.read_text() == content
