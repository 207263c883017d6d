"""One image at a time through torchvision: what batches of views are compared with."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from contrastive.augmentations import Normalize, ViewSpec
from contrastive.augmentations.parameters import Parameters


def torchvision_view(image: Tensor, spec: ViewSpec, drawn: Parameters, row: int, normalize: Normalize | None) -> Tensor:
    """The view of one uint8 image [3, H, W] with the numbers drawn for ``row``."""
    view = image.to(torch.float32) / 255
    box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
    view = tv.resized_crop(view, *box, size=[spec.image_size, spec.image_size], antialias=True)
    if drawn.flip[row]:
        view = tv.horizontal_flip(view)
    if drawn.jitter[row]:
        jitter = [
            lambda x: tv.adjust_brightness(x, float(drawn.brightness[row])),
            lambda x: tv.adjust_contrast(x, float(drawn.contrast[row])),
            lambda x: tv.adjust_saturation(x, float(drawn.saturation[row])),
            lambda x: tv.adjust_hue(x, float(drawn.hue[row])),
        ]
        for which in drawn.order[row]:
            view = jitter[which](view)
    if drawn.grayscale[row]:
        view = tv.rgb_to_grayscale(view, num_output_channels=3)
    if drawn.blur[row]:
        view = tv.gaussian_blur(view, [spec.kernel_size] * 2, [float(drawn.sigma[row])] * 2)
    if drawn.solarize[row]:
        view = tv.solarize(view, spec.solarize_threshold)
    return view if normalize is None else tv.normalize(view, list(normalize.mean), list(normalize.std))


def photographs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: smooth colour, an edge and grain, from black to white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    edge = (torch.arange(width) > width // 3).float() * 0.3
    grain = torch.randn(count, 3, height, width, generator=generator) * 0.03
    return ((smooth + edge + grain) * 255).round().clamp(0, 255).to(torch.uint8)
