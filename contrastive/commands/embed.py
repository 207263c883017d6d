"""``contrastive embed``: frozen features in a file."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive.commands.console import console
from contrastive.commands.options import device, moved
from contrastive.data.module import ImageData
from contrastive.module import ContrastiveModule
from contrastive.runs.frozen import FrozenTask
from contrastive.runs.load import load_run


def embed(run: Path, *, output: Path, data_dir: Path | None = None, split: Literal["train", "val"] = "val") -> None:
    """Write a run's frozen features of unaugmented images to an .npz file.

    Its arrays: features float32 [N, D], index int64 [N], labels int64 [N] and classes where labels are known, files
    where the images come from files.

    Args:
        run: A run's folder or a checkpoint.
        output: The .npz file to write.
        data_dir: Where the images lie now, if not where the run was trained.
        split: Which images.
    """
    trained = load_run(run, overrides=moved(data_dir))
    arrays = _embeddings(trained.recipe.method, trained.recipe.open_data(), split)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:  # as named: numpy would add .npz to a bare name
        np.savez(file, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    console.print(f"Wrote {output}: {shapes}", soft_wrap=True)


def _embeddings(method: ContrastiveModule, data: ImageData, split: Literal["train", "val"]) -> dict[str, NDArray[Any]]:
    """Frozen features with all that says which image each is of."""
    found = FrozenTask(method.evaluated_encoder, method.make_views, data, device=device()).features(split)
    arrays = {"features": found.features.cpu().numpy(), "index": found.index.cpu().numpy()}
    if found.labels is not None:
        arrays["labels"] = found.labels.cpu().numpy()
    if data.classes is not None:
        arrays["classes"] = np.array(data.classes)
    files = getattr(data, f"{split}_files", None)
    if files is not None:
        arrays["files"] = np.array([files[i] for i in found.index.tolist()])
    return arrays
