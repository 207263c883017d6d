"""load_encoder: what does not fit, runs code, is damaged or holds no weights is refused, and the message says why."""

import argparse
import pickle
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contrastive import load_encoder
from contrastive.encoders import resnet18 as resnet18_of_ours
from tests import tiny
from tests.published_files import Content, Modules, dino_resnet, distributed, head, resnet, vit


def error_of(content: object, file: Path, encoder: nn.Module | None = None) -> str:
    torch.save(content, file)
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        load_encoder(file, encoder)
    return str(error.value)


ADVICE = (
    "Pass the network they are of, without its head, as encoder; a file that holds more or less than that must be put "
    "right first."
)


def test_what_is_missing_unexpected_or_of_another_shape_is_all_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = resnet().state_dict()
    del state["layer2.0.bn1.bias"]
    state["layer9.weight"] = torch.ones(1)
    state["layer4.1.bn2.bias"] = torch.ones(7)
    target = resnet18_of_ours()
    before = deepcopy(target.state_dict())
    assert error_of(state, tmp_path / "file.pt", target) == (
        f"The weights in {tmp_path / 'file.pt'} (plain weights) do not fit ResNetEncoder. 1 missing: "
        "layer2.0.bn1.bias. 1 unexpected: layer9.weight. 1 of another shape: layer4.1.bn2.bias [7] instead of [512]. "
        f"{ADVICE}"
    )
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert error_of(state, tmp_path / "file.pt").startswith(f"The weights in {tmp_path / 'file.pt'} (plain weights) do")


def test_a_long_list_of_keys_is_cut_and_counted(tmp_path: Path) -> None:
    message = error_of(vit().state_dict(), tmp_path / "file.pt", nn.Linear(2, 2))
    assert "2 missing: weight, bias. 150 unexpected: cls_token, pos_embed, patch_embed.proj.weight, " in message
    assert "patch_embed.proj.bias, blocks.0.norm1.weight and 145 more. Pass" in message


def test_what_no_known_layout_has_beside_the_encoder_is_refused(tmp_path: Path) -> None:
    model = Modules(encoder_q=resnet(fc=nn.Linear(512, 8)), decoder=nn.Linear(2, 2))
    message = error_of({"state_dict": distributed(model)}, tmp_path / "file.pt")
    assert "(MoCo v1 or v2) do not fit ResNetEncoder. 2 unexpected: decoder.weight, decoder.bias. " in message


def solo_learn_vit() -> Content:
    model = Modules(backbone=vit(), classifier=nn.Linear(192, 10))
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}


def own_dino_vit() -> Content:
    student, teacher = (Modules(prototypes=nn.Linear(8, 4, bias=False)) for _ in range(2))
    model = Modules(encoder=vit(), momentum_encoder=vit(), projector=student, momentum_projector=teacher)
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}


def own_vit() -> Content:
    model = Modules(encoder=vit(), projector=head(192, 8))
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda: tiny.ConvEncoder().state_dict(), "(plain weights): the weights do not tell which network they are of"),
        (lambda: vit(class_token=False, global_pool="avg").state_dict(), "the keys are pos_embed, patch_embed.proj."),
        (lambda: vit(depth=2).state_dict(), "the weights do not tell which network they are of"),
        (solo_learn_vit, "(solo-learn): the weights do not tell which network they are of"),  # heads: 3, MoCo v3 12
        (own_vit, "(a module of this package): the weights do not tell which network they are of"),
        (own_dino_vit, "(DINO of this package): the weights do not tell which network they are of"),
    ],
)
def test_a_network_that_cannot_be_told_is_asked_for(content: Callable[[], Content], cause: str, tmp_path: Path) -> None:
    message = error_of(content(), tmp_path / "file.pt")
    assert cause in message
    assert message.endswith("Build it, without its head, and pass it as encoder.")


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_a_file_that_runs_code_is_refused_and_the_code_does_not_run(
    save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    canary, file = tmp_path / "canary", tmp_path / "file.pt"
    save({"state_dict": {"weight": Canary(canary)}}, file)
    with pytest.raises(
        ValueError, match=r"holds \S+ beside its tensors, .* so it is refused|is no file of torch.save, "
    ):
        load_encoder(file)
    assert not canary.exists()


def test_the_canary_of_the_test_above_would_have_been_seen(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": Canary(tmp_path / "canary")}}, tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def test_a_checkpoint_with_its_arguments_as_an_object_is_refused_by_name(tmp_path: Path) -> None:
    content = {**dino_resnet()[0], "args": argparse.Namespace(lr=1.0)}
    assert error_of(content, tmp_path / "file.pt") == (
        f"{tmp_path / 'file.pt'} holds argparse.Namespace beside its tensors, and such a file can run code when it "
        "is read, so it is refused. If you trust its source, read it once yourself with torch.load(file, "
        "weights_only=False) and save the weights alone, for example torch.save(checkpoint['state_dict'], new_file)."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, no dict of weights. Save model.state_dict()."),
        ({}, "is no dict of weights alone: it is empty. Weights are looked for under state_dict, model, teacher, "),
        ({"net": {"weight": torch.ones(1)}}, "is no dict of weights alone: it holds net. Weights are looked for under"),
        ({"model": {"a": torch.ones(1), "b": 2}}, "under 'model' is no dict of weights alone: it holds b. Weights are"),
    ],
)
def test_a_file_without_weights_is_named(content: object, message: str, tmp_path: Path) -> None:
    assert error_of(content, tmp_path / "file.pt").startswith(f"{tmp_path / 'file.pt'} {message}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("file.pt", "is no file of torch.save, "), ("file.safetensors", "cannot be read as safetensors: ")],
)
def test_a_file_of_something_else_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("not weights at all")
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / name))} {message}"):
        load_encoder(tmp_path / name)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    torch.save(tiny.ConvEncoder().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "file.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"file.pt cannot be read as a file of torch.save: "):
        load_encoder(tmp_path / "file.pt")


def test_a_file_with_a_flipped_bit_is_named_though_torch_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    weights = {"weight": torch.zeros(1000)}
    torch.save(weights, file)
    content = bytearray(file.read_bytes())
    content[content.index(bytes(4000)) + 2003] ^= 64
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)["weight"].count_nonzero() == 1
    with pytest.raises(ValueError, match=r"file\.pt is damaged: .* is wrong\. Copy it, or fetch it, once more\."):
        load_encoder(file)


def test_a_path_where_nothing_is_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_encoder(tmp_path / "runs" / "gone")
    assert str(error.value) == f"There is no run and no file of weights at {tmp_path / 'runs' / 'gone'}."
