"""``contrastive export``: the encoder as plain weights, and as ONNX."""

from pathlib import Path

from contrastive.commands.console import console
from contrastive.runs.export import save_encoder, save_onnx
from contrastive.runs.load import load_run


def export(run: Path, *, output: Path | None = None, onnx: Path | None = None) -> None:
    """Write a run's encoder as safetensors that the plain torchvision or timm model loads, and as ONNX.

    Args:
        run: A run's folder or a checkpoint.
        output: The safetensors file to write; encoder.safetensors in the run's folder unless given.
        onnx: An ONNX file to write as well; it takes normalised float images.
    """
    trained = load_run(run)
    file = output or trained.folder.path / "encoder.safetensors"
    code = save_encoder(trained.recipe.method.evaluated_encoder, file)
    console.print(f"Wrote {file}. To load it:\n", soft_wrap=True)
    console.print(code, soft_wrap=True, markup=False)
    if onnx is not None:
        save_onnx(trained.recipe.method, onnx)
        console.print(f"\nWrote {onnx}.", soft_wrap=True)
