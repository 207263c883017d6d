"""What a submodule returns while a step runs, collected by a forward hook: features of anybody's LightningModule."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from contrastive.callbacks.batches import check_labels, labels_of


class Layer:
    """A submodule whose outputs are collected, call by call, while it is open.

    Copies are taken at once, since the layer behind may work in place, and no gradient flows through them.

    Args:
        name: The submodule, as ``named_modules()`` has it: ``backbone.avgpool``.
        find_labels: Labels of a batch, int [B], where they do not lie where ``batches.labels_of`` looks.
    """

    def __init__(self, name: str, find_labels: Callable[[Any], Tensor] | None = None) -> None:
        if not name:
            raise ValueError("layer = '' names no submodule. Pass a name of module.named_modules(), as 'backbone'.")
        self.name = name
        self._find_labels = find_labels
        self._collected: list[Tensor] = []
        self._is_open = self._is_paused = False
        self._hook: RemovableHandle | None = None

    def attach(self, module: nn.Module) -> None:
        """Hook the submodule, unless it is.

        Raises:
            ValueError: There is no such submodule.
        """
        if self._hook is None:
            collect = torch.compiler.disable(self._collect)  # a compiled network is left for a moment, and goes on
            self._hook = _submodule(module, self.name).register_forward_hook(collect)

    def detach(self) -> None:
        """Leave the submodule as it was, and forget what it returned."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._is_open, self._collected = None, False, []

    def open(self) -> None:
        """Begin a step."""
        self._is_open, self._is_paused, self._collected = True, False, []

    def pause(self) -> None:
        """Leave out what is called from here on: activation checkpointing calls the submodule again in backward."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on with the step."""
        self._is_paused = False

    def take(self) -> Float[Tensor, "N D"] | None:
        """What the step's calls returned, one call's rows after the other's; None if there was no call."""
        self._is_open, collected, self._collected = False, self._collected, []
        return torch.cat(collected) if collected else None

    def labels_of(self, batch: Any) -> Int64[Tensor, " B"]:
        """The batch's classes.

        Raises:
            TypeError: There are none.
        """
        if self._find_labels is None:
            return labels_of(batch)
        return check_labels(self._find_labels(batch), "what labels= returned")

    def encode(self, module: nn.Module, images: Any) -> Float[Tensor, "B D"]:
        """What the submodule returns while ``module(images)`` runs.

        Raises:
            RuntimeError: The module has no forward, or not one of images alone.
            ValueError: The submodule did not return one row an image.
        """
        call = f"{type(module).__name__}.forward(images)"
        self.open()
        try:
            module(images)
        except (NotImplementedError, TypeError) as error:  # no forward, or one that takes something else
            raise RuntimeError(
                f"The bank's features are what {self.name!r} returns in {call}, which failed: {error}. Define forward "
                "so that it takes images as the batches have them, and calls that submodule."
            ) from error
        features = self.take()
        if features is None or len(features) != len(images):
            got = "was not called" if features is None else f"returned {len(features)} rows"
            raise ValueError(f"{self.name!r} {got} in {call} with {len(images)} images; call it once, on all of them.")
        return features

    def _collect(self, submodule: nn.Module, inputs: Any, output: Any) -> None:
        if self._is_open and not self._is_paused:
            self._collected.append(vectors(output, self.name))


@torch.no_grad()
def vectors(output: Any, name: str) -> Float[Tensor, "B D"]:
    """One vector an image: vectors [B, D] as they are, means over the tokens [B, T, D] and over the places of maps
    [B, D, H, W], in float32. Of several tensors the first.

    Args:
        output: Of a submodule: a tensor, or a tuple, list or mapping with one.
        name: The submodule's, for the message.

    Raises:
        TypeError: There is no tensor, or it holds no vectors, tokens or maps of floating point.
    """
    several = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    tensor = next((one for one in several if isinstance(one, Tensor)), output)
    if not isinstance(tensor, Tensor) or tensor.ndim < 2 or not tensor.is_floating_point():
        what = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(
            f"layer={name!r} returned {what}, and features are vectors [B, D], tokens [B, T, D] or maps "
            "[B, D, H, W] of floating point. Name another submodule."
        )
    if tensor.ndim == 2:
        return tensor.detach().clone()
    return tensor.detach().float().mean(1 if tensor.ndim == 3 else tuple(range(2, tensor.ndim)))


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [known.replace("_orig_mod.", "") for known, _ in module.named_modules() if known]
        near = get_close_matches(name, names, cutoff=0.5) or [known for known, _ in module.named_children()]
        advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else "It has no submodules."
        raise ValueError(f"{type(module).__name__} has no submodule {name!r}. {advice}") from error
