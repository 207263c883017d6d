"""Encoders: normalised images to features. Any module with ``num_features`` will do; timm's have it already."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

Stem = Literal["imagenet", "small"]


class ResNetEncoder(ResNet):
    """torchvision's ResNet without its classifier, float [B, 3, H, W] to features [B, num_features].

    Its weights load into torchvision's model of the same depth, the classifier apart.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        layers: Number of blocks in each of the four stages.
        stem: ``"small"`` is for 32x32 images, SimCLR appendix B.9: a 3x3 convolution of stride 1, no max-pool.
        width: Channels of the first stage, 64 in He et al. 2016. Narrow ones are for small images and CPUs.
        zero_init_residual: Each block begins as the identity, its last norm's weight 0 (Goyal et al. 2017,
            https://arxiv.org/abs/1706.02677, section 5.1), as SimCLR, BYOL and MoCo v3 have it.
    """

    num_features: int

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: list[int],
        *,
        stem: Stem = "imagenet",
        width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem is 'imagenet' or 'small' (for 32x32 images), got {stem!r}.")
        if width < 1:
            raise ValueError(f"width must be at least 1 channel, got {width}; He et al. have 64.")
        super().__init__(block, layers)
        if width != 64:
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.layer1 = self._make_layer(block, width, layers[0])
            self.layer2 = self._make_layer(block, 2 * width, layers[1], stride=2)
            self.layer3 = self._make_layer(block, 4 * width, layers[2], stride=2)
            self.layer4 = self._make_layer(block, 8 * width, layers[3], stride=2)
        if stem == "small":
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.num_features = 8 * width * block.expansion
        self.fc = nn.Identity()
        for module in self.modules():  # torchvision's own initialisation, for what was built after it
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, num_features]; the images are laid out channels-last, in which convolutions are faster."""
        features: Tensor = super().forward(x.contiguous(memory_format=torch.channels_last))
        return features


def resnet10(*, stem: Stem = "imagenet", width: int = 64, zero_init_residual: bool = False) -> ResNetEncoder:
    """One basic block a stage: the smallest of the family, for demonstrations. 512 features at full width."""
    return ResNetEncoder(BasicBlock, [1, 1, 1, 1], stem=stem, width=width, zero_init_residual=zero_init_residual)


def resnet18(*, stem: Stem = "imagenet", width: int = 64, zero_init_residual: bool = False) -> ResNetEncoder:
    """He et al. 2016, https://arxiv.org/abs/1512.03385, table 1. 512 features at full width."""
    return ResNetEncoder(BasicBlock, [2, 2, 2, 2], stem=stem, width=width, zero_init_residual=zero_init_residual)


def resnet34(*, stem: Stem = "imagenet", width: int = 64, zero_init_residual: bool = False) -> ResNetEncoder:
    """He et al. 2016, table 1. 512 features at full width."""
    return ResNetEncoder(BasicBlock, [3, 4, 6, 3], stem=stem, width=width, zero_init_residual=zero_init_residual)


def resnet50(*, stem: Stem = "imagenet", width: int = 64, zero_init_residual: bool = False) -> ResNetEncoder:
    """He et al. 2016, table 1, in torchvision's form (stride in the 3x3). 2048 features at full width."""
    return ResNetEncoder(Bottleneck, [3, 4, 6, 3], stem=stem, width=width, zero_init_residual=zero_init_residual)


def timm_encoder(
    name: str,
    *,
    image_size: int | None = None,
    any_image_size: bool = False,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> nn.Module:
    """The model ``name`` of timm without its classifier.

    Args:
        name: As ``timm.list_models()`` has it.
        image_size: Side of the images in pixels, for models that must know it (ViTs).
        any_image_size: Whether a ViT takes other sizes too, as multi-crop needs it: its position embeddings, made for
            ``image_size``, are interpolated bicubically (with antialiasing; DINO's code has none).
        drop_path: Rate of stochastic depth in the last block, growing linearly up to there. DINO: 0.1.
        pretrained: With timm's weights, which are downloaded.

    Raises:
        RuntimeError: timm has no such model.
    """
    import timm

    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    if any_image_size:
        options["dynamic_img_size"] = True
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


def moco_v3_vit(size: Literal["small", "base"], *, image_size: int = 224) -> nn.Module:
    """MoCo v3's vision transformer: timm's with patches of 16 pixels, a class token and 12 heads, ViT-S too.

    Chen et al. 2021, https://arxiv.org/abs/2104.02057, section 4; ``vits.py`` of facebookresearch/moco-v3, whose
    weights load into it: position embeddings are fixed sines and cosines of row and column, and linear layers and
    patches begin uniform by Glorot's rule, queries, keys and values each as a layer of its own. Features of the class
    token: 384 (ViT-S) or 768 (ViT-B).

    Args:
        size: ViT-S or ViT-B.
        image_size: Side of the images in pixels, a multiple of 16.

    Raises:
        ValueError: It has no such size, or the patches do not cover the images.
    """
    import timm

    widths = {"small": 384, "base": 768}
    if size not in widths:
        raise ValueError(f"MoCo v3's ViTs are 'small' and 'base', got {size!r}.")
    if image_size < 16 or image_size % 16:
        raise ValueError(f"image_size must be a multiple of the patches' 16 pixels, got {image_size}; MoCo v3 has 224.")
    name = f"vit_{size}_patch16_224"
    encoder: nn.Module = timm.create_model(name, img_size=image_size, num_heads=12, num_classes=0, weight_init="moco")
    patches: Any = encoder.get_submodule(
        "patch_embed.proj"
    )  # a convolution, whose fan is the pixels of a patch and the width
    bound = (6 / (patches.weight[0].numel() + patches.out_channels)) ** 0.5
    nn.init.uniform_(patches.weight, -bound, bound)
    nn.init.zeros_(patches.bias)
    encoder.pos_embed = nn.Parameter(_positions(image_size // 16, widths[size]), requires_grad=False)
    return encoder


def _positions(side: int, width: int) -> Tensor:
    """[1, 1 + side * side, width]: zeros for the class token, then sine and cosine of each patch's row and column."""
    rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))  # [width / 4]
    angles = torch.arange(side)[:, None] * rates  # [side, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    grid = torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], dim=1)  # rows, then columns
    return torch.cat([torch.zeros(1, width), grid])[None]


def torchvision_encoder(name: str, *, pretrained: bool = False) -> nn.Module:
    """The classification model ``name`` of torchvision, its last linear layer replaced by the identity.

    Args:
        name: As ``torchvision.models.list_models()`` has it.
        pretrained: With torchvision's newest weights, which are downloaded.

    Raises:
        ValueError: torchvision has no such model, or the model ends in no linear layer.
        OSError: The weights could not be downloaded.
    """
    model: Any = get_model(name, weights="DEFAULT" if pretrained else None)
    path, classifier = list(model.named_modules())[-1]
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"torchvision's {name} ends in {type(classifier).__name__}, not in a linear classifier to remove. "
            "Remove it yourself, set num_features, and pass the module as encoder."
        )
    model.set_submodule(path, nn.Identity())
    model.num_features = classifier.in_features
    return cast(nn.Module, model)
