"""What features show of themselves without a label: have they collapsed, how evenly are they spread, how many
directions do they use?
"""

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS_PER_BLOCK = 1024


def feature_std(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Standard deviation of the l2-normalised features over the images, mean over dimensions, times sqrt(D).

    1 for features spread evenly over the sphere, 0 for features that are all the same (Chen & He 2021, "Exploring
    simple Siamese representation learning", section 4.1, where the even spread is 1/sqrt(D)).
    """
    spread = F.normalize(features.float(), dim=1).std(0)
    return torch.mean(spread) * math.sqrt(features.shape[1])


def alignment(views: Float[Tensor, "V N D"]) -> Float[Tensor, ""]:
    """Mean squared distance between the l2-normalised features of two views of an image; 0 where views agree.

    Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", section 4.1.1, with alpha = 2; mean over all pairs of views.

    Raises:
        ValueError: There are fewer than two views.
    """
    if len(views) < 2:
        raise ValueError(f"Alignment compares views of the same image, and there is {len(views)}. Pass two or more.")
    normalised = F.normalize(views.float(), dim=-1)
    distances = [(one - other).square().sum(-1).mean() for one, other in combinations(normalised, 2)]
    return torch.stack(distances).mean()


def uniformity(features: Float[Tensor, "N D"], *, t: float = 2.0) -> Float[Tensor, ""]:
    """Logarithm of the mean of exp(-t |x - y|^2) over all pairs of different images, l2-normalised.

    0 where all features are the same, lower the more evenly they are spread; no less than -4t (Wang & Isola 2020,
    section 4.1.2; t = 2 is theirs). Memory grows with N, not with its square.

    Raises:
        ValueError: There are fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"Uniformity is about pairs of images, and there is {len(features)}. Pass two or more.")
    normalised = F.normalize(features.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    for start in range(0, len(normalised), ROWS_PER_BLOCK):
        rows = normalised[start : start + ROWS_PER_BLOCK]
        potential = (2 * t * (rows @ normalised.mT - 1)).exp()  # |x - y|^2 = 2 - 2 <x, y>
        own = torch.arange(len(rows), device=rows.device)
        potential[own, own + start] = 0
        total += potential.sum(dtype=torch.float64)
    return (total / (len(features) * (len(features) - 1))).log().float()


def effective_rank(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the singular values of the features, which are not centred and not normalised.

    Between 1 (one direction holds all) and min(N, D); so a value says little without its N (Roy & Vetterli 2007, "The
    effective rank: a measure of effective dimensionality"; on features it is RankMe, Garrido et al. 2023, equation 1).
    Uncentred, features that have all become the same count as rank 1; centred, their noise would count as full rank.
    Features that are all zero count as rank 1 too.
    """
    wide = features.double()
    gram = wide @ wide.mT if len(wide) < wide.shape[1] else wide.mT @ wide
    # Relative to the largest, eigenvalues below rounding are zero; left in, their roots would count as directions.
    eigenvalues = torch.linalg.eigvalsh(gram)
    floor = eigenvalues[-1] * torch.finfo(torch.float64).eps * len(gram)
    singular_values = torch.where(eigenvalues > floor, eigenvalues, 0).clamp(min=0).sqrt()
    shares = singular_values / singular_values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp().float()
