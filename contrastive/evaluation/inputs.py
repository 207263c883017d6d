"""What linear classifiers are given of an encoder: its output, or more of a vision transformer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NUM_BLOCKS = 4  # DINOv2's last 4
WideFeatures = Callable[[Tensor], Tensor]


def wide_features(encoder: nn.Module) -> tuple[WideFeatures, Mapping[str, slice]]:
    """A function from images to features [B, K], and which of its columns make which input of a classifier.

    Of a ``VisionTransformer`` of timm with a class token and four blocks or more: the class tokens of the last four
    blocks, in order, then the mean of the last block's patch tokens, all behind the encoder's ``norm``: K = 5 D. The
    inputs are those of DINOv2's linear evaluation (``create_linear_input`` in ``dinov2/eval/linear.py`` of
    https://github.com/facebookresearch/dinov2): the class token of the last block or of the last four, with the mean
    patch or without. Register tokens are in none. Of any other encoder: its output, as the one input.

    Args:
        encoder: In evaluation mode when the function is called.
    """
    if not _is_vision_transformer(encoder):
        return encoder, {"output": slice(None)}
    transformer: Any = encoder
    width: int = transformer.num_features

    def encode(images: Tensor) -> Tensor:
        # Of each block: the patch tokens [B, P, D], and the class token before any register tokens.
        blocks = transformer.get_intermediate_layers(images, NUM_BLOCKS, return_prefix_tokens=True, norm=True)
        class_tokens = [prefix[:, 0] for _, prefix in blocks]
        return torch.cat([*class_tokens, blocks[-1][0].mean(1)], dim=1)

    last, mean_patch = NUM_BLOCKS * width, (NUM_BLOCKS + 1) * width
    return encode, {
        "last 1": slice(last - width, last),
        "last 1 + mean patch": slice(last - width, mean_patch),
        "last 4": slice(0, last),
        "last 4 + mean patch": slice(0, mean_patch),
    }


def _is_vision_transformer(encoder: nn.Module) -> bool:
    """Whether it has what is needed, by timm's names; so timm need not be imported for encoders of other kinds."""
    return (
        hasattr(encoder, "get_intermediate_layers")
        and getattr(encoder, "num_prefix_tokens", 0) > 0
        and getattr(encoder, "cls_token", None) is not None
        and len(getattr(encoder, "blocks", ())) >= NUM_BLOCKS
    )
