"""Files laid out as their projects save them, built by networks with the same module names."""

from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet50

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
