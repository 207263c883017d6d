"""SimCLR: the views of an image attract; every view of every other image repels.

Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual Representations.
ICML 2020. https://arxiv.org/abs/2002.05709. Official code: https://github.com/google-research/simclr.

Shape letters
    V  views of an image      B  images on this rank      D  feature width      P  projection width
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from contrastive.augmentations import MakeViews
from contrastive.chunks import check_chunk_size, encode_in_chunks
from contrastive.heads import mlp
from contrastive.losses import nt_xent
from contrastive.module import ContrastiveModule, Step, Views, feature_dim
from contrastive.optim import MakeOptimizer


class SimCLR(ContrastiveModule):
    """An encoder, a projector used only in training, and NT-Xent over the images of all ranks.

    Args:
        encoder: Images [B, 3, H, W] to features [B, D], with ``num_features = D``.
        make_views: Turns a batch of images into V >= 2 views of each; see ``contrastive.augmentations``.
        make_optimizer: See ``contrastive.optim``.
        temperature: Softmax temperature. The official code: 0.1 on ImageNet, 0.5 on CIFAR-10.
        hidden_dim: Width of the projector's hidden layer. The paper: the features' width, 2048 for ResNet-50.
        projection_dim: Width P of the space the loss lives in. The paper: 128.
        encode_chunk_size: Views encoded at a time, and again in the backward pass, for batches that do not fit into
            memory; BatchNorm then normalises each chunk by itself. See ``contrastive.chunks``. None: all at once.
        seed: Of the augmentations.
    """

    def __init__(
        self,
        encoder: nn.Module,
        make_views: MakeViews | Callable[[Tensor], Sequence[Tensor]],
        make_optimizer: MakeOptimizer,
        *,
        temperature: float = 0.5,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        encode_chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, make_views, make_optimizer, seed=seed)
        check_chunk_size(encode_chunk_size)
        self.temperature, self.encode_chunk_size = temperature, encode_chunk_size
        self.projector = mlp(feature_dim(encoder), hidden_dim, projection_dim, last_norm=True)

    def step(self, views: Views) -> Step:
        """Algorithm 1 of the paper."""
        images = torch.cat(list(views))  # [VB, 3, H, W]; one pass, so BatchNorm sees all views
        features = encode_in_chunks(self.encoder, images, self.encode_chunk_size)  # [VB, D]
        projections = encode_in_chunks(self.projector, features, self.encode_chunk_size)  # [VB, P]
        loss = nt_xent(projections, temperature=self.temperature, num_views=len(views))
        return Step(loss, features, projections)
