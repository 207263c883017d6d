"""Who may import whom. The arrow points one way, and this file is what keeps it so."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERYTHING = "contrastive"
ENGINE = {  # what stands below the methods
    "contrastive.distributed",
    "contrastive.banks",
    "contrastive.batch_norm",
    "contrastive.chunks",
    "contrastive.clustering",
    "contrastive.heads",
    "contrastive.losses",
    "contrastive.modes",
    "contrastive.momentum",
    "contrastive.queue",
}
MAY_IMPORT = {  # the longest matching path decides
    "augmentations": {"contrastive.augmentations"},
    "callbacks": {
        "contrastive.callbacks",
        "contrastive.banks",
        "contrastive.evaluation",
        "contrastive.distributed",
    },
    "contrastive/__init__.py": {EVERYTHING},
    "contrastive/__main__.py": {"contrastive.cli"},
    "contrastive/cli": {EVERYTHING},
    "contrastive/commands": {EVERYTHING},
    "contrastive/recipes": {EVERYTHING},
    "contrastive/report": {EVERYTHING},
    "contrastive/runs": {EVERYTHING},
    "contrastive/data": {"contrastive.data", "contrastive.distributed", "contrastive.augmentations.RaggedImages"},
    "contrastive/evaluation": {
        "contrastive.evaluation",
        "contrastive.clustering",
        "contrastive.distributed",
        "contrastive.modes",
    },
    "contrastive/encoders.py": set(),
    "contrastive/optim.py": set(),
    "contrastive/sharding.py": {"contrastive.distributed"},
    "contrastive/module.py": {
        "contrastive.augmentations",
        "contrastive.chunks",
        "contrastive.distributed",
        "contrastive.optim",
        "contrastive.sharding",
    },
    "contrastive/methods": {
        "contrastive.methods",
        "contrastive.module",
        "contrastive.augmentations",
        "contrastive.encoders",
        "contrastive.optim",
        "contrastive.sharding",
        *ENGINE,
    },
    **{module.replace(".", "/"): ENGINE for module in ENGINE},
}
FILES = sorted(
    path.relative_to(ROOT)
    for room in ("contrastive", "augmentations", "callbacks")
    for path in (ROOT / room).rglob("*.py")
    if not {"contrastive/augmentations", "contrastive/callbacks"}
    & {p.as_posix() for p in path.relative_to(ROOT).parents}
)


def imported(path: Path) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the full name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return set(names)


def ours(name: str) -> bool:
    return name.split(".")[0] in {"contrastive", "augmentations", "callbacks", "benchmarks", "tests"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_arrow(path: Path) -> None:
    rule = max((r for r in MAY_IMPORT if path.as_posix().startswith(r)), key=len)
    extra = [
        name
        for name in sorted(filter(ours, imported(path)))
        if not any(name == allowed or name.startswith(allowed + ".") for allowed in MAY_IMPORT[rule])
    ]
    assert not extra, f"{path} imports {extra}; {rule} may import only {sorted(MAY_IMPORT[rule])}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parts[:2] in {("contrastive", "losses"), ("contrastive", "evaluation")}], ids=str
)
def test_losses_and_evaluation_know_nothing_of_lightning(path: Path) -> None:
    assert not [name for name in imported(path) if "lightning" in name]


def test_importing_the_package_leaves_the_heavy_libraries_alone() -> None:
    heavy = ["kornia", "timm", "sklearn", "matplotlib.pyplot", "jsonargparse", "scipy", "onnx"]
    script = (
        "import pytorch_lightning, torchvision, sys; before = set(sys.modules); import contrastive; "
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
