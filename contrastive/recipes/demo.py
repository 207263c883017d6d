"""SimCLR learns drawn shapes whose names it is never told.

    contrastive fit

Expect: 87.8 to 90.7 % by linear evaluation after about two minutes of training on two CPU cores (three seeds,
``benchmarks/results/quality.jsonl``). The table at its end compares with the untrained encoder and the raw pixels.

Numbers: ours, tuned on two CPU cores; none is published. The encoder is a ResNet of one block a stage, half as wide
as usual, whose ImageNet stem makes it cheap. The views are SimCLR's without blur; crops keep at least half of the
image, for a smaller piece of one shape is often a piece of another too.
"""

from contrastive.augmentations import simclr_views
from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.data import Shapes
from contrastive.encoders import resnet10
from contrastive.methods import SimCLR
from contrastive.optim import adamw_cosine
from contrastive.recipes.recipe import Precision, Recipe


def recipe(
    *,
    max_epochs: int = 12,
    batch_size: int = 256,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    temperature: float = 0.1,
    width: int = 32,
    num_train: int = 10_000,
    num_test: int = 2_000,
    devices: int = 1,
    precision: Precision = "32-true",
    seed: int = 0,
) -> Recipe:
    """What to train.

    Args:
        max_epochs: Passes over the training images.
        batch_size: Images per device and step.
        lr: Learning rate of AdamW, after one epoch of warm-up.
        weight_decay: Of all weights but biases and norms.
        temperature: Of NT-Xent's softmax.
        width: Channels of the encoder's first stage.
        num_train: Images to draw for training.
        num_test: Images to draw for evaluation.
        devices: Number of GPUs, or of processes on a CPU.
        precision: Of the arithmetic; bf16-mixed is for GPUs.
        seed: Of the drawn images, weights, order and augmentations.
    """
    encoder = resnet10(width=width)
    return Recipe(
        method=SimCLR(
            encoder,
            make_views=simclr_views(32, blur=False, scale=(0.5, 1.0)),
            make_optimizer=adamw_cosine(lr, weight_decay=weight_decay, warmup_epochs=min(1, max_epochs / 10)),
            temperature=temperature,
            hidden_dim=encoder.num_features,
            projection_dim=128,
            seed=seed,
        ),
        open_data=lambda: Shapes(num_train=num_train, num_test=num_test, batch_size=batch_size, seed=seed),
        callbacks=[LinearProbe(num_classes=10), KNNProbe(k=20, temperature=0.07), RepresentationMonitor()],
        trainer={"max_epochs": max_epochs, "devices": devices, "precision": precision},
        seed=seed,
        evaluate=True,
    )
