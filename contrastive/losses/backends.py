"""What makes the tiles of logits, and which of them a batch gets."""

from importlib.util import find_spec
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]


@runtime_checkable
class Tiles(Protocol):
    """A module of the functions that ``torch_tiles`` describes."""

    def working_dtype(self, dtype: torch.dtype, /) -> torch.dtype:
        """In which dtype it wants rows that come in another."""
        ...

    def log_sum_exp(self, x: Tensor, y: Tensor, x_ids: Tensor | None = ..., y_ids: Tensor | None = ...) -> Tensor:
        """See ``torch_tiles``."""
        ...

    def attend(
        self, x: Tensor, y: Tensor, x_ids: Tensor | None = ..., y_ids: Tensor | None = ...
    ) -> tuple[Tensor, Tensor]:
        """See ``torch_tiles``."""
        ...

    def pull(
        self,
        x: Tensor,
        y: Tensor,
        x_ids: Tensor | None = ...,
        y_ids: Tensor | None = ...,
        *,
        by_row: tuple[Tensor, Tensor] | None = ...,
        by_column: tuple[Tensor, Tensor] | None = ...,
    ) -> Tensor:
        """See ``torch_tiles``."""
        ...


def tiles_for(backend: Backend, rows: Tensor) -> Tiles:
    """The functions that make tiles on the rows' device.

    Args:
        backend: "triton" (NVIDIA), "torch" (anywhere); "auto" takes the fastest that can.
        rows: For their device, dtype and width.

    Raises:
        ValueError: There is no such backend, or it cannot take these rows.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f'backend="{backend}" is not known. Choose "auto", "torch" or "triton".')
    reason = None if backend == "torch" else _why_not_triton(rows)
    if backend == "triton" and reason is not None:
        raise ValueError(f'backend="triton" cannot take these rows: {reason}. Choose "auto", or "torch".')
    if backend == "torch" or reason is not None:
        from contrastive.losses import torch_tiles

        return cast(Tiles, torch_tiles)
    from contrastive.losses import triton_tiles

    return cast(Tiles, triton_tiles)


def _why_not_triton(rows: Tensor) -> str | None:
    if rows.device.type != "cuda":
        return f"it runs on NVIDIA GPUs, and they are on {rows.device}"
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    from contrastive.losses import triton_tiles

    return triton_tiles.why_not(rows)
