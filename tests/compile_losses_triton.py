"""Compiles the losses' Triton kernels for GPUs that need not be there, and prints what each one uses.

    python -m tests.compile_losses_triton 80,90,100 bfloat16,float32 128,256 log_sum_exp,pull_by_both with_ids

It is a process of its own because tests without a GPU interpret the kernels, which is decided when they are imported.
"""

import json
import sys
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contrastive.losses import triton_tiles
from tests.compile_triton import POINTERS, resources

CALLS = {  # function, and the softmaxes that it is given
    "log_sum_exp": ("log_sum_exp", ()),
    "attend": ("attend", ()),
    "pull_by_row": ("pull", ("by_row",)),
    "pull_by_column": ("pull", ("by_column",)),
    "pull_by_both": ("pull", ("by_row", "by_column")),
}


def call(name: str, dtype: torch.dtype, width: int, with_ids: bool) -> None:
    rows, ids, values = torch.zeros(256, width, dtype=dtype), torch.zeros(256).long(), torch.zeros(256)
    function, softmaxes = CALLS[name]
    given = (rows, rows, ids, ids) if with_ids else (rows, rows)
    getattr(triton_tiles, function)(*given, **{softmax: (values, values) for softmax in softmaxes})


def compile_for(
    architecture: int, kernel: Any, tiling: triton_tiles.Tiling, arguments: dict[str, Any]
) -> dict[str, Any]:
    constants, signature, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
            continue
        is_tensor = isinstance(value, Tensor)
        signature[parameter.name] = ({**POINTERS, torch.int64: "*i64"})[value.dtype] if is_tensor else "i32"
        if is_tensor or (not parameter.do_not_specialize and value % 16 == 0):  # PyTorch's memory begins at such places
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return {
        "kernel": kernel.__name__,
        "architecture": architecture,
        "told": {name: value for name, value in arguments.items() if isinstance(value, int)},
        "given": [name for name, value in arguments.items() if isinstance(value, Tensor)],
        "dtype": str(arguments["x"].dtype) if "x" in arguments else None,
        "warps": tiling.num_warps,
        **resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "uses_tensor_cores": any(name in compiled.asm["ptx"] for name in ("mma.sync", "wgmma.mma", "tcgen05.mma")),
    }


def main() -> None:
    """One line of JSON for each kernel and architecture."""
    architectures, dtypes, widths, names, ids = (argument.split(",") for argument in sys.argv[1:])
    printed = set()

    def compile_instead(kernel: Any, grid: Any, tiling: triton_tiles.Tiling, arguments: dict[str, Any]) -> None:
        for architecture in architectures:
            line = json.dumps(compile_for(int(architecture), kernel, tiling, arguments))
            if line not in printed:
                print(line, flush=True)
            printed.add(line)

    triton_tiles._run = compile_instead
    for dtype, width, name, with_ids in product(dtypes, widths, names, ids):
        call(name, getattr(torch, dtype), int(width), with_ids == "with_ids")


if __name__ == "__main__":
    main()
