"""Nothing in the package runs code that a file may hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for room in ("contrastive", "augmentations", "callbacks") for path in sorted((ROOT / room).rglob("*.py"))]
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
HARMLESS = {"PicklingError", "UnpicklingError", "safe_load"}  # what may be imported from them
UNSAFE_CALLS = {"eval", "exec", "load_state_dict_from_url", "load_from_checkpoint", "download_url_to_file"}


def complaints(source: str) -> list[str]:
    """What in a file could run code of another one, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {a.name}" for a in node.names if a.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found += [f"{node.lineno}: {a.name}" for a in node.names if a.name not in HARMLESS]
        elif isinstance(node, ast.Call):
            called, named = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load" and named.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load")
            if called in ("np.load", "numpy.load") and named.get("allow_pickle", "False") != "False":
                found.append(f"{node.lineno}: {called}")
            if called in UNSAFE_CALLS or (called.rpartition(".")[2] in UNSAFE_CALLS - {"eval", "exec"}):
                found.append(f"{node.lineno}: {called}")
            if called in ("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"):
                found.append(f"{node.lineno}: {called}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_read_in_a_way_that_could_run_code(path: Path) -> None:
    assert complaints(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import yaml",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=safe)",
        "np.load(file, allow_pickle=True)",
        "torch.hub.load_state_dict_from_url(address)",
        "Module.load_from_checkpoint(file)",
        "eval(text)",
    ],
)
def test_what_could_run_code_is_seen(source: str) -> None:
    assert complaints(source)
