"""Features kept on the disk from one evaluation to the next, under a key of all that they depend on."""

import hashlib
import inspect
import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from contrastive.augmentations import MakeViews, Views
from contrastive.data.manifest import Manifest
from contrastive.evaluation.features import Features
from contrastive.runs.environment import PACKAGE

UNFINISHED = ".part"
HALVES = (f"*{UNFINISHED}", ".tmp*")  # the second are safetensors' own, which it renames in its turn
ABANDONED_S = 24 * 3600  # nobody writes features for a day: what is older was left by a process that was killed
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
CODE = ("augmentations", "data", "evaluation/inputs.py")  # of this package: what stands between a file and an encoder

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_WRONG_FILE = (SafetensorError, OSError, ValueError, KeyError, RuntimeError)  # what reading a torn file raises


class NotCacheableError(ValueError):
    """Features that depend on something of which no key can be made; the message says on what."""


class CacheWarning(UserWarning):
    """Features were not kept, or what was kept could not be used; the evaluation goes on without."""


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features, a safetensors file each; nothing in a file is executed. It grows until it is deleted.

    A file is written beside its place, forced to the disk and then renamed, so that what carries a key is whole,
    whoever else writes the same. A checksum in it tells if it was damaged since: such a file is reported, and its
    features are as if they were not there.

    Attributes:
        folder: Made when something is first kept.
    """

    folder: Path

    def file(self, key: str) -> Path:
        """Where the features of a key lie."""
        return self.folder / f"{key}.safetensors"

    def read(self, key: str, device: torch.device | str = "cpu") -> Features | None:
        """The features of a key, on a device; None, and a warning of one line if their file is damaged."""
        file = self.file(key)
        try:
            content = file.read_bytes()  # at once: somebody may put another file into its place
            tensors, said = load(content), _metadata(content)
            if said["sha256"] != _checksum(key, tensors, said["about"]):
                raise ValueError("their checksum is another, so the file is torn or was altered")
            return Features(tensors["features"], tensors.get("labels"), tensors["index"]).to(device)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _WRONG_FILE as error:
            reason = " ".join(str(error).split())
            warnings.warn(
                f"The features kept in {file} cannot be used: {reason}. They are extracted again.",
                CacheWarning,
                stacklevel=2,
            )
            return None

    def write(self, key: str, features: Features, about: Mapping[str, str]) -> None:
        """Keep features. Where that fails (the disk is full), a warning of one line says so.

        Args:
            key: From ``key_of``.
            features: On any device.
            about: What the key was made of, for people.
        """
        tensors = {"features": features.features, "labels": features.labels, "index": features.index}
        there = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        said = {"about": json.dumps(dict(about))}
        said["sha256"] = _checksum(key, there, said["about"])
        unfinished = self.folder / f"{key}-{secrets.token_hex(8)}{UNFINISHED}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            unfinished.touch()
            mode = unfinished.stat().st_mode
            save_file(there, unfinished, said)
            unfinished.chmod(mode)  # safetensors gives it to its owner alone
            _sync(unfinished)
            os.replace(unfinished, self.file(key))
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            warnings.warn(
                f"The features could not be kept in {self.folder}: {error}. The next evaluation extracts them again.",
                CacheWarning,
                stacklevel=2,
            )

    def _sweep(self) -> None:
        for part in chain(*map(self.folder.glob, HALVES)):
            with suppress(FileNotFoundError):  # somebody else's, and just renamed
                if part.stat().st_mtime < time.time() - ABANDONED_S:
                    part.unlink()


def default_folder() -> Path:
    """Where features lie that belong to no run: ``~/.cache/contrastive/features``, or under ``$XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "contrastive", "features")


def key_of(about: Mapping[str, str]) -> str:
    """A key of everything that ``about`` says, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()


def about_features(
    encoder: nn.Module, make_views: MakeViews, manifest: Manifest, *, device: torch.device, **options: object
) -> dict[str, str]:
    """All that features depend on, each under its name: the encoder's weights and code, views, data and software.

    Not in it are the batch size and the number of ranks, which change no more than a feature's last bits.

    Args:
        encoder: Its class's source and its modules' settings count too: two vision transformers of one set of weights
            may differ in their number of attention heads.
        make_views: Their evaluation view counts.
        manifest: Of the images.
        device: Its kind counts: a GPU rounds in its own way.
        **options: What else there is, such as the precision.

    Raises:
        NotCacheableError: The views are a function of somebody's, or a module's source is not known.
    """
    return {
        "weights": weights_digest(encoder),
        "architecture": _digest(_architecture(encoder)),
        "views": _evaluation(make_views),
        "data": f"{manifest.digest} by {manifest.by}",
        "device": f"{device.type}, matrix products {torch.get_float32_matmul_precision()}",
        "software": ", ".join([*(f"{name} {metadata.version(name)}" for name in LIBRARIES), f"code {_own_code()}"]),
        **{name: str(value) for name, value in options.items()},
    }


def weights_digest(encoder: nn.Module) -> str:
    """SHA-256 of a module's ``state_dict``: names, types, shapes and bytes, in hexadecimal digits."""
    return _digest(part for name, value in encoder.state_dict().items() for part in (name, _said(value)))


def _architecture(encoder: nn.Module) -> Iterator[str]:
    """What an encoder is beside its weights: each module's class and settings, and the source of each class."""
    classes: dict[type, None] = {}
    for name, module in encoder.named_modules():
        classes |= dict.fromkeys(type(module).__mro__)
        yield f"{name} {type(module).__module__}.{type(module).__qualname__}"
        settings = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        for key, value in {**settings, **dict(module.named_buffers(recurse=False))}.items():  # those not saved too
            yield f"{key} {_said(value)}"
    for cls in classes:
        yield from _source(cls)


def _evaluation(make_views: MakeViews) -> str:
    if not isinstance(make_views, Views):
        raise NotCacheableError(
            f"what {type(make_views).__name__} do to an image is a function, which may change unseen. Give views of "
            "contrastive.augmentations to have them kept."
        )
    operations = make_views.views[0] if make_views.evaluation is None else make_views.evaluation
    sources = [source for operation in operations for source in _source(type(operation))]
    kind = "the middle of" if make_views.evaluation is None else "all of"
    how = f"{make_views.dtype}, {make_views.memory_format}, backend {make_views.backend}"
    return f"{kind} {_said(list(operations))}, {how}, code {_digest(sources)}"


def _source(cls: type) -> Iterator[str]:
    """The source of a class, unless its library's version, or the code of this package, stands for it.

    Raises:
        NotCacheableError: There is none, as of a class typed into a console.
    """
    if cls.__module__.split(".")[0] in (*LIBRARIES, "builtins", "abc", "typing", "collections"):
        return
    try:
        yield inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise NotCacheableError(
            f"the source of {cls.__qualname__} is not known. Define it in a file to have them kept."
        ) from error


@cache
def _own_code() -> str:
    files = [file for part in CODE for file in (PACKAGE / part, *sorted((PACKAGE / part).rglob("*.py")))]
    return _digest(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _said(value: Any) -> str:
    """A value in words, the same in every process."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    return _ADDRESS.sub("", repr(value))


def _checksum(key: str, tensors: Mapping[str, Tensor], about: str) -> str:
    return _digest([key, about, *(f"{name} {_said(tensors[name])}" for name in sorted(tensors))])


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says beside its tensors: its header is JSON behind its length in 8 bytes."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])


def _digest(parts: Any) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode()).digest())  # of each: no two lists of parts run together
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
