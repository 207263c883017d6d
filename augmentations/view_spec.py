"""What one random view is made of: sizes, probabilities and strengths."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ViewSpec:
    """One view's distribution. The operations happen in the order of these attributes.

    Only the crop happens by default; every ``p_`` is the probability that an image gets the operation.

    Attributes:
        image_size: Side of the view, in pixels.
        scale: Range of the crop's share of the image's area, 0 < low <= high <= 1.
        ratio: Range of the crop's width / height, drawn uniformly in its logarithm.
        p_flip: Horizontal flip.
        p_jitter: Colour jitter: brightness, contrast, saturation and hue in an order drawn for each image.
        brightness: Factors are uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: Likewise.
        saturation: Likewise.
        hue: Shifts are uniform in [-hue, hue], in full circles; at most 0.5.
        p_grayscale: Grayscale.
        p_blur: Gaussian blur.
        blur_kernel_size: Odd, in pixels; None is a tenth of image_size, made odd and at least 3 (SimCLR, appendix A).
        blur_sigma: Range of the standard deviation, in pixels.
        p_solarize: Inversion of the bright pixels.
        solarize_threshold: From where a pixel is bright, in [0, 1].

    Raises:
        ValueError: A value out of its range.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    p_flip: float = 0.0
    p_jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p_grayscale: float = 0.0
    p_blur: float = 0.0
    blur_kernel_size: int | None = None
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    p_solarize: float = 0.0
    solarize_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is the side of a view in pixels, so at least 1, but it is {self.image_size}.")
        for name in ("p_flip", "p_jitter", "p_grayscale", "p_blur", "p_solarize"):
            self._check(name, 0, 1, "It is a probability: 0 never, 1 always.")
        for name in ("brightness", "contrast", "saturation"):
            self._check(name, 0, float("inf"), "It is how far a factor strays from 1; 0 leaves the image as it is.")
        self._check("hue", 0, 0.5, "It is in full circles, and half a circle either way reaches every hue.")
        self._check("solarize_threshold", 0, 1, "Pixels are in [0, 1] here; divide a threshold for uint8 by 255.")
        self._check_pair("scale", 1, "It is the crop's share of the image's area.")
        self._check_pair("ratio", float("inf"), "It is the crop's width / height.")
        self._check_pair("blur_sigma", float("inf"), "For no blur set p_blur=0.")
        kernel_size = self.kernel_size
        if self.p_blur > 0 and (kernel_size % 2 == 0 or not 0 < kernel_size < 2 * self.image_size):
            raise ValueError(
                f"A blur kernel of {kernel_size} pixels does not fit {self.image_size} x {self.image_size} views: it "
                f"must be odd and at most {2 * self.image_size - 1}. Choose another blur_kernel_size, or p_blur=0."
            )

    @property
    def kernel_size(self) -> int:
        """The blur kernel's side in pixels, odd."""
        return self.blur_kernel_size or max(3, self.image_size // 20 * 2 + 1)

    def _check(self, name: str, least: float, most: float, meaning: str) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise ValueError(f"{name}={value} is not in [{least:g}, {most:g}]. {meaning}")

    def _check_pair(self, name: str, most: float, meaning: str) -> None:
        low, high = getattr(self, name)
        if not 0 < low <= high <= most:
            raise ValueError(f"{name}=({low}, {high}) is no range 0 < low <= high <= {most:g}. {meaning}")
