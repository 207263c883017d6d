"""The views of published recipes, each default with its source.

Where several official codes differ in a detail, ours is torchvision's: crops by ``RandomResizedCrop``'s rule, resized
bilinearly with antialiasing, contrast about the mean luma, blur with reflected borders.
"""

from dataclasses import replace

from contrastive.augmentations.normalize import IMAGENET, Normalize
from contrastive.augmentations.pipeline import ViewPipeline
from contrastive.augmentations.view_spec import ViewSpec


def simclr_views(
    image_size: int,
    *,
    strength: float = 1.0,
    blur: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    num_views: int = 2,
    normalize: Normalize | None = IMAGENET,
) -> ViewPipeline:
    """The views of SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709, appendix A).

    Crop to 8-100 % of the area with ratio 3/4-4/3; flip 0.5; jitter 0.8 of brightness, contrast and saturation 0.8
    and hue 0.2, times ``strength``; grayscale 0.2; blur 0.5 with a kernel of a tenth of the side and sigma 0.1-2.0.

    The official code (``data_util.py`` of google-research/simclr, version 2 of its brightness) differs from ours in
    resizing bicubically without antialiasing, drawing the ratio uniformly up to 1.33 with a hundred attempts, taking
    contrast about each channel's own mean, padding the blur with zeros, and in not normalising.

    Args:
        image_size: Side of the views, in pixels.
        strength: Of the jitter; 1.0 for ImageNet, 0.5 for CIFAR-10 (appendix B.9).
        blur: False for CIFAR-10 (appendix B.9).
        scale: Range of the crop's share of the image's area.
        num_views: How many independent views of each image.
        normalize: The encoder's channel statistics; None leaves the views in [0, 1], as the official code does.
    """
    spec = ViewSpec(
        image_size,
        scale=scale,
        p_flip=0.5,
        p_jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        p_grayscale=0.2,
        p_blur=0.5 if blur else 0.0,
    )
    return ViewPipeline((spec,) * num_views, normalize)


def moco_v2_views(
    image_size: int = 224,
    *,
    blur: bool = True,
    scale: tuple[float, float] = (0.2, 1.0),
    num_views: int = 2,
    normalize: Normalize | None = IMAGENET,
) -> ViewPipeline:
    """The views of MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297, section 3).

    They are those of ``--aug-plus`` in facebookresearch/moco: crop to 20-100 % of the area; jitter 0.8 of brightness,
    contrast and saturation 0.4 and hue 0.1; grayscale 0.2; blur 0.5 with sigma 0.1-2.0; flip 0.5. The official code
    blurs with Pillow, which approximates the Gaussian by box blurs and does not cut it off; ours has SimCLR's kernel.
    It flips last, which comes to the same.

    Args:
        image_size: Side of the views, in pixels.
        blur: False for small images.
        scale: Range of the crop's share of the image's area.
        num_views: How many independent views of each image.
        normalize: The encoder's channel statistics; None leaves the views in [0, 1].
    """
    spec = ViewSpec(
        image_size,
        scale=scale,
        p_flip=0.5,
        p_jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        p_grayscale=0.2,
        p_blur=0.5 if blur else 0.0,
    )
    return ViewPipeline((spec,) * num_views, normalize)


def byol_views(
    image_size: int = 224,
    *,
    blur: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    normalize: Normalize | None = IMAGENET,
) -> ViewPipeline:
    """The two unequal views of BYOL (Grill et al. 2020, https://arxiv.org/abs/2006.07733, appendix B, table 6).

    Both: crop to 8-100 % of the area, flip 0.5, jitter 0.8 of brightness and contrast 0.4, saturation 0.2 and hue 0.1,
    grayscale 0.2. The first is always blurred and never solarized; the second is blurred with 0.1 and solarized with
    0.2. The kernel is 23 pixels at 224, sigma 0.1-2.0. The paper resizes bicubically.

    Args:
        image_size: Side of the views, in pixels.
        blur: False for small images.
        scale: Range of the crop's share of the image's area.
        normalize: The encoder's channel statistics; None leaves the views in [0, 1].
    """
    first = ViewSpec(
        image_size,
        scale=scale,
        p_flip=0.5,
        p_jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        p_grayscale=0.2,
        p_blur=1.0 if blur else 0.0,
    )
    second = replace(first, p_blur=0.1 if blur else 0.0, p_solarize=0.2)
    return ViewPipeline((first, second), normalize)


def multi_crop_views(
    image_size: int = 224,
    *,
    local_size: int = 96,
    num_local: int = 6,
    global_scale: tuple[float, float] = (0.14, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.14),
    strength: float = 1.0,
    blur: bool = True,
    normalize: Normalize | None = IMAGENET,
) -> ViewPipeline:
    """Two global and several local views, of SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882, section 3.2).

    The defaults are those of ``main_swav.py`` and ``multicropdataset.py`` in facebookresearch/swav: 2 x 224 pixels of
    14-100 % of the area and 6 x 96 pixels of 5-14 %; flip 0.5; SimCLR's jitter and grayscale; blur 0.5 with a kernel of
    23 pixels at both sizes and sigma 0.1-2.0.

    DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294, ``main_dino.py``) has global crops of 40-100 % and 8
    local ones of 5-40 %, BYOL's jitter, and blur 1.0, 0.1 and 0.5 on the first global, the second global (which it
    solarizes with 0.2) and the local views: ``ViewPipeline`` takes a ``ViewSpec`` for each.

    Args:
        image_size: Side of the global views, in pixels.
        local_size: Side of the local views, in pixels.
        num_local: How many local views.
        global_scale: Range of a global crop's share of the image's area.
        local_scale: Range of a local crop's share of the image's area.
        strength: Of the jitter.
        blur: False for small images.
        normalize: The encoder's channel statistics; None leaves the views in [0, 1].

    Returns:
        A pipeline that makes the two global views first.
    """
    simclr = simclr_views(image_size, strength=strength, blur=blur).specs[0]
    kernel_size = simclr.kernel_size
    large = replace(simclr, scale=global_scale, blur_kernel_size=kernel_size)
    small = replace(large, image_size=local_size, scale=local_scale)
    return ViewPipeline((large,) * 2 + (small,) * num_local, normalize)
