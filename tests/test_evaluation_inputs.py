"""What linear classifiers are given of an encoder, against DINOv2's way in plain torch."""

import pytest
import torch
from torch import Tensor, nn

from contrastive.encoders import moco_v3_vit, resnet10
from contrastive.evaluation.inputs import wide_features

WIDTH = 12


def vision_transformer(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": 6, "num_heads": 2, "num_classes": 0}
    encoder: nn.Module = VisionTransformer(**(small | options)).eval()
    for parameter in encoder.parameters():  # norms and register tokens that do something
        nn.init.normal_(parameter, std=0.3)
    return encoder


def dinov2_inputs(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The blocks' outputs behind the last norm; the last n class tokens, with the mean of the last patch tokens."""
    tokens: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: tokens.append(out)) for block in encoder.blocks]
    encoder(images)
    for hook in hooks:
        hook.remove()
    normed = [encoder.norm(block) for block in tokens]
    num_patches = (images.shape[-1] // 4) ** 2
    inputs = {}
    for n in (1, 4):
        classes = torch.cat([block[:, 0] for block in normed[-n:]], dim=-1)
        inputs[f"last {n}"] = classes
        inputs[f"last {n} + mean patch"] = torch.cat([classes, normed[-1][:, -num_patches:].mean(dim=1)], dim=-1)
    return inputs


@pytest.mark.parametrize("registers", [0, 3])
def test_a_vision_transformer_gives_the_four_inputs_of_dinov2(registers: int) -> None:
    encoder, images = vision_transformer(reg_tokens=registers), torch.randn(3, 3, 16, 16)
    encode, inputs = wide_features(encoder)
    with torch.no_grad():
        wide, expected = encode(images), dinov2_inputs(encoder, images)
    assert wide.shape == (3, 5 * WIDTH)
    assert list(inputs) == list(expected)
    for name, columns in inputs.items():
        torch.testing.assert_close(wide[:, columns], expected[name])


def test_the_last_class_token_is_the_output_of_moco_v3s_encoder() -> None:
    encoder, images = moco_v3_vit("small", image_size=32).eval(), torch.randn(2, 3, 32, 32)
    encode, inputs = wide_features(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encode(images)[:, inputs["last 1"]], encoder(images))


def class_attention() -> nn.Module:
    """A transformer whose class token enters after the blocks."""
    from timm.models.cait import Cait

    return Cait(img_size=16, patch_size=4, embed_dim=WIDTH, depth=4, num_heads=2, num_classes=0).eval()


@pytest.mark.parametrize(
    "encoder",
    [
        resnet10(stem="small", width=4).eval(),
        vision_transformer(class_token=False, global_pool="avg"),
        vision_transformer(class_token=False, reg_tokens=1, global_pool="avg"),
        vision_transformer(depth=3),
        class_attention(),
    ],
    ids=["no transformer", "no class token", "registers alone", "too few blocks", "class attention"],
)
def test_any_other_encoder_gives_its_output(encoder: nn.Module) -> None:
    encode, inputs = wide_features(encoder)
    assert encode is encoder
    assert inputs == {"output": slice(None)}
