"""What several commands make of their options."""

from collections.abc import Callable
from pathlib import Path

import torch

from contrastive import recipes
from contrastive.recipes.recipe import Recipe
from contrastive.runs.signature import JSON, UsageError, to_json


def known_recipe(name: str) -> Callable[..., Recipe]:
    """A recipe that was named on the command line."""
    if name not in recipes.names():
        raise UsageError(f"There is no recipe {name!r}. {recipes.did_you_mean(name, recipes.names())}")
    return recipes.load(name)


def check_counts(**counts: int | None) -> None:
    """Options that count something, by name; None is one that was not given.

    Raises:
        UsageError: A count is less than 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name.replace('_', '-')} takes 1 or more, got {count}.")


def moved(data_dir: Path | None) -> dict[str, JSON]:
    """The recipe's argument that says where the images lie now, where one was given."""
    return {} if data_dir is None else to_json({"data_dir": data_dir})


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
