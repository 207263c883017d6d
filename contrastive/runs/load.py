"""A run's folder, or a checkpoint alone, back to the recipe with its trained weights."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from contrastive import recipes
from contrastive.recipes.recipe import Recipe
from contrastive.runs.checkpoints import CheckpointError, Newest, WholeCheckpoints, newest
from contrastive.runs.continuity import CHECKPOINT_KEY
from contrastive.runs.folder import RunFolder
from contrastive.runs.signature import JSON, CommandLine, to_json


@dataclass(frozen=True)
class TrainedRun:
    """A recipe with the weights of a checkpoint in its method.

    Attributes:
        name: The recipe's name.
        arguments: All its arguments, overridden ones as given now.
        recipe: The rebuilt recipe; its method carries the weights and is in evaluation mode.
        checkpoint: The file the weights are from.
        epochs: Number of finished epochs of training.
        folder: The run's folder; for a checkpoint outside of one, the folder that holds the file.
    """

    name: str
    arguments: dict[str, JSON]
    recipe: Recipe
    checkpoint: Path
    epochs: int
    folder: RunFolder


def build(name: str, arguments: Mapping[str, JSON]) -> Recipe:
    """A recipe from its name and arguments, its weights drawn from its seed: the same every time.

    Raises:
        ValueError: The recipe or an argument of it is not there (any more), or is refused.
    """
    function = recipes.load(name)
    values = CommandLine(function).from_json(arguments)
    seed = to_json(values)["seed"]
    assert isinstance(seed, int)  # every recipe has one
    pl.seed_everything(seed, verbose=False)
    return function(**values)


def load_run(path: Path, *, overrides: Mapping[str, JSON] | None = None) -> TrainedRun:
    """The run in a folder (its newest checkpoint), or the run a checkpoint is from.

    A checkpoint says by itself which recipe and arguments it came from; ``run.json`` is not needed.

    Args:
        path: A run's folder or a checkpoint.
        overrides: Arguments to change, for example ``data_dir`` where the images have moved.

    Raises:
        FileNotFoundError: Nothing is there, or no checkpoint yet.
        ValueError: The file is no checkpoint of a recipe, or its weights do not fit the recipe of today.
    """
    file = checkpoint_file(path)
    checkpoint = read_checkpoint(file)
    name = checkpoint[CHECKPOINT_KEY]["recipe"]
    arguments = {**checkpoint[CHECKPOINT_KEY]["arguments"], **(overrides or {})}
    recipe = build(name, arguments)
    try:
        recipe.method.load_state_dict(checkpoint["state_dict"], strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The weights in {file} do not fit recipe {name} as it is now: {reason}") from error
    recipe.method.eval()
    inside = file.parent.name == RunFolder(Path()).checkpoints.name
    folder = RunFolder(file.parent.parent if inside else file.parent)
    return TrainedRun(name, arguments, recipe, file, checkpoint["epoch"] + 1, folder)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or a run's newest whole one; skipped ones are warned of.

    Raises:
        FileNotFoundError: Nothing is there, the folder is no run's, or the run has no checkpoint yet.
        CheckpointError: None of the run's checkpoints is whole.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no run or checkpoint at {path}. Runs lie in runs/ unless --run-dir said else."
        )
    if path.is_file():
        return path
    folder = RunFolder(path)
    folder.record()
    found = newest_of(folder)
    if found.path is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet: the first is written when training begins.")
    for reason in found.skipped.values():
        warnings.warn(f"{reason} {found.path} is taken instead.", stacklevel=2)
    return found.path


def newest_of(folder: RunFolder) -> Newest:
    """The newest whole checkpoint of a run, if there is any checkpoint, and which newer ones are none.

    Raises:
        CheckpointError: There are checkpoints, but none is whole.
    """
    found = newest(folder.checkpoints)
    if found.path is None and found.skipped:
        reasons = " ".join(found.skipped.values())
        raise CheckpointError(
            f"None of the checkpoints in {folder.checkpoints} can be used. {reasons} Put back a copy of one, or delete "
            "them all to begin anew."
        )
    return found


def names_a_recipe(file: Path) -> bool:
    """Whether the file is a checkpoint of ``contrastive fit``; it is read for that, and nothing in it is executed."""
    try:
        read_checkpoint(file)
    except ValueError:
        return False
    return True


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU; nothing in the file is executed (``weights_only=True``).

    Raises:
        ValueError: The file is torn or was altered, cannot be read so, or was not written by ``contrastive fit``.
    """
    checkpoint = WholeCheckpoints().load_checkpoint(file)
    if "recipe" not in checkpoint.get(CHECKPOINT_KEY, {}):
        raise ValueError(
            f"{file} does not say which recipe it came from, so it was not written by `contrastive fit`. "
            "Load it with your own script, by torch.load and load_state_dict."
        )
    return checkpoint
