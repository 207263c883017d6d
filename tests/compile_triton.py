"""Compiles the Triton kernels of published views for GPUs that need not be there, and prints what each one uses.

    python -m tests.compile_triton 80,90,100 bfloat16 simclr_32 byol_224

It is a process of its own because tests without a GPU interpret the kernels, which is decided when they are imported.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from contrastive.augmentations import SampleKey, Views, byol_views, dino_views, mae_views, simclr_views, swav_views
from contrastive.augmentations.backends import triton_backend
from contrastive.augmentations.images import RaggedImages
from contrastive.augmentations.program import Code, Program

PUBLISHED: dict[str, Callable[[], Views]] = {
    "simclr_32": lambda: simclr_views(32, blur=False),
    "simclr_blur_32": lambda: simclr_views(32),
    "simclr_64": lambda: simclr_views(64),
    "simclr_96": lambda: simclr_views(96),
    "simclr_224": lambda: simclr_views(224),
    "byol_224": lambda: byol_views(224),
    "byol_64": lambda: byol_views(64),
    "swav_224_96": lambda: swav_views(),
    "dino_224_96": lambda: dino_views(),
    "mae_224": lambda: mae_views(224),
}
POINTERS = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}


def launches(name: str, dtype: torch.dtype, pixel_dtype: torch.dtype) -> Iterator[triton_backend.Launch]:
    """All launches of the published views, if no slot stays empty."""
    pixels = torch.zeros(1, 3, 8, 8, dtype=pixel_dtype)
    images = RaggedImages.of_one_size(pixels)
    for (program,) in replace(PUBLISHED[name](), backend="torch").programs(
        pixels, SampleKey(0, 0, torch.zeros(1).long())
    ):
        out = torch.empty(1, 3, *program.size, dtype=dtype)
        yield from triton_backend.prepare(images, with_everything_drawn(program), None, out)


def with_everything_drawn(program: Program) -> Program:
    slots = []
    for slot in program.slots:
        code = Code.CONTRAST if Code.CONTRAST in slot.may_be else slot.may_be[0]
        slots.append(replace(slot, codes=np.full_like(slot.codes, code)))
    return replace(program, slots=tuple(slots))


def compile_for(launch: triton_backend.Launch, architecture: int) -> dict[str, str | int]:
    constants, signature = {}, {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
        elif isinstance(value, tuple):
            signature[parameter.name] = ("fp32",) * len(value)
        else:
            assert parameter.do_not_specialize, f"{parameter.name} would be compiled for its value"
            signature[parameter.name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    return {
        "kernel": launch.kernel.__name__,
        "architecture": architecture,
        "size": launch.arguments["HEIGHT"],
        "warps": launch.num_warps,
        **resources(kernel.asm["cubin"]),
        "shared": kernel.metadata.shared,
        "fused": kernel.metadata.enable_fp_fusion,
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of the stack and of local memory, where registers that do not fit would go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


def distinct(jobs: Iterator[triton_backend.Launch]) -> list[triton_backend.Launch]:
    """Without those that are the same to the compiler."""

    def identity(launch: triton_backend.Launch) -> str:
        told = {
            k: v.dtype if isinstance(v, torch.Tensor) else v for k, v in launch.arguments.items() if "stride" not in k
        }
        return f"{launch.kernel.__name__} {launch.num_warps} {told}"

    return list({identity(launch): launch for launch in jobs}.values())


def main() -> None:
    """One line of JSON for each kernel and architecture."""
    architectures, dtypes, *names = sys.argv[1:]
    jobs = distinct(
        launch
        for dtype in dtypes.split(",")
        for pixel_dtype in ((torch.uint8, torch.float32) if dtype == "float32" else (torch.uint8,))
        for name in names or PUBLISHED
        for launch in launches(name, getattr(torch, dtype), pixel_dtype)
    )
    for architecture in architectures.split(","):
        for launch in jobs:
            print(json.dumps(compile_for(launch, int(architecture))), flush=True)


if __name__ == "__main__":
    main()
