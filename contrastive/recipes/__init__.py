"""What a run is made of, one typed function a file: the folder's listing is the registry."""

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contrastive.recipes.recipe import Recipe

DEMO = "demo"


def names() -> list[str]:
    """The recipes there are, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "recipe")


def load(name: str) -> "Callable[..., Recipe]":
    """The recipe's function, ``contrastive.recipes.NAME.recipe``.

    Raises:
        ValueError: There is no such recipe; the message names the closest one.
    """
    if name not in names():
        raise ValueError(f"There is no recipe {name!r}. {did_you_mean(name, names())}")
    function: Callable[..., Recipe] = importlib.import_module(f"{__name__}.{name}").recipe
    return function


def summary(name: str) -> str:
    """The first line of the recipe's docstring, read without importing what the recipe needs."""
    tree = ast.parse(Path(__path__[0], f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A sentence for an error message: the closest known word, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
