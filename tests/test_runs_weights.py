"""load_encoder: files laid out as their projects save them, built here by networks with the same module names.

Each test compares features with those of the network that was saved, bit for bit.
"""

import argparse
import logging
import pickle
import random
import re
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet50
from torchvision.models.resnet import Bottleneck

from contrastive import load_encoder
from contrastive.cli import main
from contrastive.encoders import ResNetEncoder, Stem, resnet10
from contrastive.encoders import resnet18 as resnet18_of_ours
from contrastive.runs.export import save_encoder
from tests import tiny
from tests.methods import METHODS

Content = dict[str, Any]
Network = TypeVar("Network", bound=nn.Module)
SIZE = 32


def images() -> Tensor:
    """In the layout that our ResNets convert to, so that the same kernels run in both networks."""
    batch = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return batch.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features(network: nn.Module) -> Tensor:
    """Of a copy in evaluation mode and without its head."""
    network = deepcopy(network).eval()
    for head in ("fc", "head"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    output: Tensor = network(images())
    return output.flatten(1)


@torch.no_grad()
def trained(network: Network) -> Network:
    """The network with statistics and scales of BatchNorm and biases as after training: no two networks alike."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) + (0.5 if name.endswith(("weight", "var")) else 0))
    return network


def small_stem(network: ResNet, padding: int) -> ResNet:
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=padding, bias=False)
    network.maxpool = nn.Identity()
    return network


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    return trained(timm.create_model(name, img_size=SIZE, **{"num_classes": 0} | options))


def head(*widths: int) -> nn.Sequential:
    """Linear layers and BatchNorm, as projectors and predictors have."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.BatchNorm1d(following), nn.ReLU()]
    return nn.Sequential(*layers)


class Modules(nn.Module):
    """Modules and buffers under the names given."""

    def __init__(self, **members: nn.Module | Tensor) -> None:
        super().__init__()
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            else:
                self.register_buffer(name, member)


def resnet(*, fc: nn.Module | None = None) -> ResNet:
    network = trained(resnet18())
    if fc is not None:
        network.fc = fc
    return network


def numbered(network: ResNet) -> nn.Sequential:
    return nn.Sequential(*list(network.children())[:-1])


def distributed(network: nn.Module) -> dict[str, Tensor]:
    """The state in DataParallel, whose keys are those of DistributedDataParallel."""
    state: dict[str, Tensor] = nn.DataParallel(network).state_dict()
    assert all(name.startswith("module.") for name in state)
    return state


def of_training(network: nn.Module) -> Content:
    """What stands beside the weights in many checkpoints."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return {"epoch": 1, "arch": "resnet18", "optimizer": optimizer.state_dict()}


def moco_v1() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Linear(512, 128))
    model = Modules(
        encoder_q=source,
        encoder_k=resnet(fc=nn.Linear(512, 128)),
        queue=torch.randn(128, 64),
        queue_ptr=torch.zeros(1, dtype=torch.long),
    )
    return {**of_training(model), "state_dict": distributed(model)}, source


def moco_v2() -> tuple[Content, nn.Module]:
    source, key = (resnet(fc=nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))) for _ in range(2))
    model = Modules(encoder_q=source, encoder_k=key, queue=torch.randn(128, 64), queue_ptr=torch.zeros(1).long())
    return {**of_training(model), "state_dict": distributed(model)}, source


def moco_v3_resnet() -> tuple[Content, nn.Module]:
    source, momentum = (resnet(fc=head(512, 64, 32)) for _ in range(2))
    model = Modules(base_encoder=source, momentum_encoder=momentum, predictor=head(32, 64, 32))
    return {**of_training(model), "state_dict": distributed(model)}, source


def moco_v3_vit() -> tuple[Content, nn.Module]:
    source, momentum = (vit("vit_small_patch16_224", num_heads=12) for _ in range(2))  # vits.py
    for network in (source, momentum):
        network.head = head(384, 64, 64, 32)
    model = Modules(base_encoder=source, momentum_encoder=momentum, predictor=head(32, 64, 32))
    return {"epoch": 1, "arch": "vit_small", "state_dict": distributed(model)}, source


def dino_resnet() -> tuple[Content, nn.Module]:
    source, student = resnet(fc=nn.Identity()), resnet(fc=nn.Identity())
    teacher = distributed(Modules(backbone=source, head=head(512, 64, 32)))
    return {"student": distributed(Modules(backbone=student, head=head(512, 64, 32))), "teacher": teacher}, source


def dino_vit() -> tuple[Content, nn.Module]:
    source, student = vit("vit_small_patch16_224"), vit("vit_small_patch16_224")
    teacher = Modules(backbone=source, head=head(384, 64, 32)).state_dict()  # no BatchNorm in it: not distributed
    return {"student": distributed(Modules(backbone=student, head=head(384, 64, 32))), "teacher": teacher}, source


def dino_backbone() -> tuple[Content, nn.Module]:
    source = vit("vit_small_patch8_224")
    return source.state_dict(), source


def swav() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Identity())
    source.conv1.padding = (2, 2)  # src/resnet50.py pads by one pixel before
    source.projection_head, source.prototypes = head(512, 64), nn.Linear(64, 30, bias=False)
    state = distributed(source)
    del source.projection_head, source.prototypes
    return {"epoch": 1, "state_dict": state}, nn.Sequential(nn.ConstantPad2d(1, 0.0), source)


def simsiam() -> tuple[Content, nn.Module]:
    source = resnet(fc=head(512, 512, 64))
    model = Modules(encoder=source, predictor=head(64, 16, 64))
    return {**of_training(model), "state_dict": distributed(model)}, source


def barlow_twins() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Identity())
    model = Modules(backbone=source, projector=head(512, 64), bn=nn.BatchNorm1d(64, affine=False))
    return {"epoch": 1, "model": distributed(model), "optimizer": {}}, source


def barlow_twins_final() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Identity())
    return source.state_dict(), source


def simclr_pytorch() -> tuple[Content, nn.Module]:
    source = resnet()  # its fc is there and unused
    return {"state_dict": Modules(convnet=source, projection=head(512, 64)).state_dict()}, source


def simclr_of_sthalles() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128)))
    return {"epoch": 1, "state_dict": Modules(backbone=source).state_dict()}, source


def simclr_of_spijkervet() -> tuple[Content, nn.Module]:
    source = resnet(fc=nn.Identity())
    return distributed(Modules(encoder=source, projector=head(512, 64))), source


def simclr_converted() -> tuple[Content, nn.Module]:
    source = resnet()
    return {"state_dict": source.state_dict()}, source


def byol_of_sthalles() -> tuple[Content, nn.Module]:
    source, target = resnet(), resnet()
    online = Modules(encoder=numbered(source), projetion=head(512, 64)).state_dict()
    return {
        "target_network_state_dict": Modules(encoder=numbered(target), projetion=head(512, 64)).state_dict(),
        "online_network_state_dict": online,
    }, source


def byol_of_lightly() -> tuple[Content, nn.Module]:
    source = resnet()
    model = Modules(
        backbone=numbered(source),
        projection_head=head(512, 64),
        prediction_head=head(64, 64),
        backbone_momentum=numbered(resnet()),
        projection_head_momentum=head(512, 64),
    )
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}, source


def dino_of_lightly() -> tuple[Content, nn.Module]:
    source = resnet()
    model = Modules(
        student_backbone=numbered(resnet()),
        student_head=head(512, 64),
        teacher_backbone=numbered(source),
        teacher_head=head(512, 64),
        criterion=Modules(center=torch.zeros(1, 1, 64)),
    )
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}, source


def solo_learn_cifar() -> tuple[Content, nn.Module]:
    source, momentum = (trained(small_stem(resnet(fc=nn.Identity()), padding=2)) for _ in range(2))
    model = Modules(
        backbone=source,
        classifier=nn.Linear(512, 10),
        projector=head(512, 64),
        predictor=head(64, 64),
        momentum_backbone=momentum,
        momentum_projector=head(512, 64),
    )
    return {"pytorch-lightning_version": "2.0", "state_dict": model.state_dict()}, source


def simclr_cifar() -> tuple[Content, nn.Module]:
    source = trained(small_stem(resnet(), padding=1))
    return {"state_dict": Modules(convnet=source, projection=head(512, 64)).state_dict()}, source


def torchvision_plain() -> tuple[Content, nn.Module]:
    source = trained(resnet50())
    return source.state_dict(), source


def timm_plain() -> tuple[Content, nn.Module]:
    source = vit(num_classes=10)
    return source.state_dict(), source


@pytest.mark.parametrize(
    "layout",
    [
        *(moco_v1, moco_v2, moco_v3_resnet, moco_v3_vit, dino_resnet, dino_vit, dino_backbone, swav, simsiam),
        *(barlow_twins, barlow_twins_final, simclr_pytorch, simclr_of_sthalles, simclr_of_spijkervet),
        *(simclr_converted, byol_of_sthalles, byol_of_lightly, dino_of_lightly, solo_learn_cifar, simclr_cifar),
        *(torchvision_plain, timm_plain),
    ],
)
def test_a_projects_file_gives_the_features_of_the_network_it_was_saved_from(
    layout: Callable[[], tuple[Content, nn.Module]], tmp_path: Path
) -> None:
    content, source = layout()
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    encoder = load_encoder(str(tmp_path / "checkpoint.pth.tar"))
    assert not any(module.training for module in encoder.modules())
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(source))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `contrastive fit`."""
    folder = tmp_path_factory.mktemp("run")
    for number, image in enumerate(tiny.images(20, 32)):
        for split in ("train", "test"):
            (folder / split / f"class{number % 10}").mkdir(parents=True, exist_ok=True)
            pixels = image.permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / split / f"class{number % 10}" / f"{number}.png")
    options = f"--data-dir {folder} --width 8 --batch-size 8 --max-epochs 1 --run-dir {folder / 'run'}"
    assert main(f"fit moco_resnet18_cifar10 {options} --queue-size 32 --batch-norm-groups 2".split()) == 0
    return folder / "run"


def encoder_in(checkpoint: Path) -> nn.Module:
    """The encoder of the run above, taken out by hand."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    encoder = resnet18_of_ours(stem="small", width=8)
    encoder.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("encoder.")})
    return encoder


@pytest.mark.parametrize("path", ["", "checkpoints/last.ckpt"])
def test_a_runs_folder_and_its_checkpoint_give_the_trained_encoder(run: Path, path: str) -> None:
    encoder = load_encoder(run / path)
    assert not any(module.training for module in encoder.modules())
    with torch.no_grad():
        assert torch.equal(encoder(images()), features(encoder_in(run / "checkpoints" / "last.ckpt")))


def test_an_exported_run_gives_the_trained_encoder(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "encoder.safetensors")]) == 0
    with torch.no_grad():
        loaded = load_encoder(tmp_path / "encoder.safetensors")(images())
    assert torch.equal(loaded, features(encoder_in(run / "checkpoints" / "last.ckpt")))


@pytest.mark.parametrize("name", METHODS)
def test_the_checkpoint_of_an_own_trainer_gives_the_trained_encoder(name: str, tmp_path: Path) -> None:
    module = METHODS[name].build(resnet10(stem="small", width=8))
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.data(32))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "own.ckpt")(images()), features(module.evaluated_encoder))


@pytest.mark.parametrize(
    ("layers", "stem"), [([1, 1, 1, 1], "small"), ([2, 3, 1, 2], "imagenet"), ([3, 4, 23, 3], "imagenet")]
)
def test_depth_width_and_stem_of_a_resnet_are_read_off_its_weights(
    layers: list[int], stem: Stem, tmp_path: Path
) -> None:
    source = trained(ResNetEncoder(Bottleneck, layers, stem=stem, width=4))
    save_encoder(source, tmp_path / "encoder.safetensors")
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "encoder.safetensors")(images()), features(source))


def test_a_network_given_is_loaded_into_and_returned(tmp_path: Path) -> None:
    source, target = trained(tiny.ConvEncoder()), tiny.ConvEncoder()
    torch.save({"state_dict": distributed(Modules(encoder_q=source, queue=torch.ones(3)))}, tmp_path / "file.pt")
    assert load_encoder(tmp_path / "file.pt", target) is target
    assert not target.training
    assert torch.equal(features(target), features(source))


def test_a_network_of_numbered_layers_keeps_its_numbers(tmp_path: Path) -> None:
    source, target = (nn.Sequential(*list(trained(resnet18()).children())[:-1]) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "file.pt")
    assert torch.equal(load_encoder(tmp_path / "file.pt", target)(images()).flatten(1), features(source))


def test_the_log_says_what_was_recognised_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(moco_v2()[0], tmp_path / "file.pt")
    with caplog.at_level(logging.INFO, logger="contrastive"):
        load_encoder(tmp_path / "file.pt")
    assert caplog.messages == [
        f"{tmp_path / 'file.pt'}: MoCo v1 or v2, keys 'encoder_q.', into ResNetEncoder; left out: queue (1), "
        "queue_ptr (1), fc (4), encoder_k (124)."
    ]


def test_loading_leaves_the_random_numbers_alone(run: Path, tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "file.pt")
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    load_encoder(tmp_path / "file.pt")
    load_encoder(run)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


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


def test_a_run_says_itself_which_encoder_it_has(run: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is of `contrastive fit` and says itself which encoder it has: leave encoder"
    ):
        load_encoder(run, tiny.ConvEncoder())
