"""A pretrained encoder from a file: of this package, or as the official code of other methods saves it."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from contrastive.encoders import ResNetEncoder, timm_encoder
from contrastive.runs import safe_load
from contrastive.runs.continuity import CHECKPOINT_KEY

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Where a project's checkpoint has the encoder, and what else is in it.

    Attributes:
        name: Of the method or project.
        prefix: Of the encoder's keys, once ``module.`` is gone, which DistributedDataParallel puts before every key.
        others: What is left out: heads, other networks, queues. Names of modules or buffers; None: all beside it.
    """

    name: str
    prefix: str
    others: tuple[str, ...] | None

    def leaves_out(self, name: str) -> bool:
        """Whether the key ``name`` is none of the encoder's."""
        if self.others is None:
            return not name.startswith(self.prefix)
        return any(f"{name}.".startswith(f"{other}.") for other in self.others)


# Names as in the code that saves: moco/builder.py and main_moco.py of facebookresearch/moco and /moco-v3, which both
# evaluate the network trained by gradient (main_lincls.py); main_dino.py and MultiCropWrapper of facebookresearch/dino;
# main.py of /barlowtwins, main_vicreg.py of /vicreg, simsiam/builder.py of /simsiam, src/resnet50.py of /swav;
# solo/methods of vturrisi/solo-learn; examples/pytorch_lightning of lightly-ai/lightly; models/encoder.py of
# AndrewAtanov/simclr-pytorch, simclr/simclr.py of Spijkervet/SimCLR, convert.py of tonylins/simclr-converter (plain);
# sthalles/PyTorch-BYOL, which spells projetion.
MOCO_V3 = Layout("MoCo v3", "base_encoder.", ("base_encoder.fc", "base_encoder.head", "momentum_encoder", "predictor"))
SOLO_LEARN = Layout(
    "solo-learn",
    "backbone.",
    (
        *("classifier", "projector", "predictor", "prototypes", "head", "queue", "queue_ptr", "dino_loss_func"),
        *("momentum_backbone", "momentum_classifier", "momentum_projector", "momentum_head"),
    ),
)
OWN = Layout("a module of this package", "encoder.", None)
OWN_DINO = Layout("DINO of this package", "momentum_encoder.", None)
OWN_DINO_MARK = "momentum_projector.prototypes.weight"  # no other method here has prototypes in a copy
LAYOUTS = (  # the first that fits
    Layout("MoCo v1 or v2", "encoder_q.", ("encoder_q.fc", "encoder_k", "queue", "queue_ptr")),
    MOCO_V3,
    Layout("simclr-pytorch", "convnet.", ("convnet.fc", "projection")),
    Layout("DINO of lightly", "teacher_backbone.", ("teacher_head", "student_backbone", "student_head", "criterion")),
    SOLO_LEARN,
    Layout(
        "DINO, Barlow Twins, VICReg or lightly",
        "backbone.",
        (
            *("backbone.fc", "backbone.head", "head", "projector", "bn", "projection_head", "prediction_head"),
            *("prototypes", "backbone_momentum", "projection_head_momentum", "criterion"),
        ),
    ),
    OWN_DINO,
    OWN,
    Layout("SimSiam, SimCLR or BYOL", "encoder.", ("encoder.fc", "projector", "projetion", "predictor")),
    Layout("plain weights", "", ("fc", "head", "projection_head", "prototypes")),
)
SOLO_LEARN_MARK = "classifier.weight"  # its online classifier, in every method

# Where a checkpoint has its weights. DINO evaluates the teacher (eval_linear.py, --checkpoint_key); BYOL keeps the
# online network (section 3 of the paper).
WEIGHTS_UNDER = ("state_dict", "model", "teacher", "student", "online_network_state_dict")
DDP = "module."

NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # children of ResNet
VIT_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
SHOWN = 5  # keys that an error names


def load_encoder(path: str | Path, encoder: nn.Module | None = None) -> nn.Module:
    """A pretrained encoder, in evaluation mode.

    Read are a run's folder, a checkpoint of ``contrastive fit``, a file of ``contrastive export``, a checkpoint of
    one's own ``Trainer``, and what these save: MoCo v1, v2 and v3, DINO, SwAV, SimSiam, Barlow Twins, VICReg, ports of
    SimCLR and BYOL to PyTorch, solo-learn, lightly, torchvision and timm; as ``.safetensors`` or of ``torch.save``. Of
    several networks it takes the one its project evaluates: MoCo's query or base encoder, DINO's teacher. So it does
    with this package's (``ContrastiveModule.evaluated_encoder``); in a checkpoint of one's own ``Trainer``, which does
    not say of which method it is, that is ``encoder`` unless DINO's head shows.

    Every weight of the encoder must be in the file, and every one in the file must belong to the encoder or to the
    heads, other networks and queues that the file's layout is known to have. Those are left out; the logger
    ``contrastive`` says at level INFO what was recognised and left out. Nothing in a file is executed.

    Weights do not tell all. A 3x3 stem is SimCLR's (padding 1, no max-pool), in solo-learn's files theirs (padding 2).
    A ViT has timm's number of attention heads, in a checkpoint of MoCo v3 its own (12 in ViT-S, not 6). How images are
    normalised is for the caller to know. Random numbers are left as they were.

    Args:
        path: A folder or file.
        encoder: The network to load into, without a head. Left out, it is built on the CPU: a ResNet of torchvision's
            names (any depth and width, both stems) or a ViT that timm has, unless the file may be of any method.

    Returns:
        ``encoder``, or the one built: images [B, 3, H, W] to features [B, D].

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file cannot be read without running code, or holds no weights; they do not tell the network; or
            they do not fit it, and then ``encoder`` is as it was.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no run and no file of weights at {path}.")
    with isolate_rng(include_cuda=torch.cuda.is_initialized()):
        content = {} if path.is_dir() else _read(path)
        run = content.get(CHECKPOINT_KEY)
        if path.is_dir() or (isinstance(run, Mapping) and "recipe" in run):
            return _from_run(path, encoder)
        return _from_weights(content, encoder, path)


def _from_run(path: Path, encoder: nn.Module | None) -> nn.Module:
    from contrastive.runs.load import load_run  # here, since it brings the libraries of the shell

    if encoder is not None:
        raise ValueError(f"{path} is of `contrastive fit` and says itself which encoder it has: leave encoder out.")
    run = load_run(path)
    log.info("%s: the encoder of recipe %s after %d epochs.", path, run.name, run.epochs)
    return run.recipe.method.evaluated_encoder


def _from_weights(content: Mapping[str, object], encoder: nn.Module | None, file: Path) -> nn.Module:
    saved = _without_ddp(_state_dict(content, file))
    layout = _layout(saved, of_lightning="pytorch-lightning_version" in content)
    left_out = [name for name in saved if layout.leaves_out(name)]
    weights = {name.removeprefix(layout.prefix): saved[name] for name in saved if not layout.leaves_out(name)}
    if "4.0.conv1.weight" in weights and (encoder is None or "conv1.weight" in encoder.state_dict()):
        weights = {_named(name): value for name, value in weights.items()}
    if encoder is None:
        encoder = _build(weights, layout, file)
    _check(weights, encoder, f"{file} ({layout.name})")
    encoder.load_state_dict(weights, strict=True)
    counts = Counter(name.removeprefix(layout.prefix).split(".")[0] for name in left_out)
    summary = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"
    log.info("%s: %s, keys %r, into %s; left out: %s.", file, layout.name, layout.prefix, _title(encoder), summary)
    return encoder.eval()


def _read(file: Path) -> Mapping[str, object]:
    """What the file holds, on the CPU."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(
                f"{file} is no file of torch.save, or holds more than tensors and plain values, which is never loaded: "
                "such a file can run code. Give weights as torch.save or safetensors write them."
            ) from error
        raise ValueError(
            f"{file} holds {found[1]} beside its tensors, and such a file can run code when it is read, so it is "
            "refused. If you trust its source, read it once yourself with torch.load(file, weights_only=False) and "
            "save the weights alone, for example torch.save(checkpoint['state_dict'], new_file)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} cannot be read as a file of torch.save: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, no dict of weights. Save model.state_dict().")
    if damage := safe_load.damage(file):
        raise ValueError(f"{file} is damaged: {damage}. Copy it, or fetch it, once more.")
    return content


def _state_dict(content: Mapping[str, object], file: Path) -> Weights:
    """The weights, which may lie beside an optimizer and other things."""
    for key in WEIGHTS_UNDER:
        nested = content.get(key)
        if isinstance(nested, Mapping):
            return _tensors(nested, f"{file} under {key!r}")
    return _tensors(content, str(file))


def _tensors(weights: Mapping[str, object], source: str) -> Weights:
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not weights or len(tensors) < len(weights):
        others = _listed(name for name in weights if name not in tensors)
        raise ValueError(
            f"{source} is no dict of weights alone: {f'it holds {others}' if others else 'it is empty'}. Weights are "
            f"looked for under {', '.join(WEIGHTS_UNDER)} or by themselves; save them so if they have another name."
        )
    return tensors


def _without_ddp(weights: Weights) -> Weights:
    if all(name.startswith(DDP) for name in weights):
        return {name.removeprefix(DDP): value for name, value in weights.items()}
    return weights


def _layout(weights: Weights, *, of_lightning: bool) -> Layout:
    refused = {SOLO_LEARN, OWN, OWN_DINO}
    if of_lightning:
        modules = {name.partition(".")[0] for name in weights}
        supervised = modules == {"encoder", "classifier"}  # this package's: RotNet, DeepCluster, SupervisedBaseline
        if SOLO_LEARN_MARK in weights and not supervised:
            refused -= {SOLO_LEARN}
        else:
            refused -= {OWN_DINO if OWN_DINO_MARK in weights else OWN}
    candidates = (layout for layout in LAYOUTS if layout not in refused)
    return next(layout for layout in candidates if any(name.startswith(layout.prefix) for name in weights))


def _named(name: str) -> str:
    """The name in ResNet of a key in ``nn.Sequential(*list(resnet.children())[:-1])``."""
    first, _, rest = name.partition(".")
    return f"{NUMBERED.get(first, first)}.{rest}"


def _build(weights: Weights, layout: Layout, file: Path) -> nn.Module:
    """The network that the names and shapes tell."""
    encoder = _resnet(weights, layout) or _vit(weights, layout)
    if encoder is None:
        raise ValueError(
            f"{file} ({layout.name}): the weights do not tell which network they are of; the keys are "
            f"{_listed(weights)}. Build it, without its head, and pass it as encoder."
        )
    return encoder


def _resnet(weights: Weights, layout: Layout) -> nn.Module | None:
    layers = [len(_numbers(weights, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    stem = weights.get("conv1.weight")
    if stem is None or stem.ndim != 4 or stem.shape[-1] not in (3, 7) or not all(layers):
        return None
    small = stem.shape[-1] == 3
    block = Bottleneck if "layer1.0.conv3.weight" in weights else BasicBlock
    encoder = ResNetEncoder(block, layers, stem="small" if small else "imagenet", width=len(stem))
    if small and layout is SOLO_LEARN:  # solo/methods/base.py
        encoder.conv1.padding = (2, 2)
    return encoder


def _vit(weights: Weights, layout: Layout) -> nn.Module | None:
    patches, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 3 or "cls_token" not in weights:
        return None
    if layout in (
        SOLO_LEARN,
        OWN,
        OWN_DINO,
    ):  # a ViT-S has 12 heads in MoCo v3 and 6 elsewhere, and the keys are the same
        return None
    import timm

    dim, patch = len(patches), patches.shape[-1]
    grid = math.isqrt(positions.shape[1] - 1)
    name = f"vit_{VIT_SIZES.get((dim, len(_numbers(weights, 'blocks'))))}_patch{patch}_224"
    if grid**2 != positions.shape[1] - 1 or name not in timm.list_models("vit_*"):
        return None
    if layout is MOCO_V3 and dim == 384:  # vits.py
        return timm.create_model(name, num_classes=0, img_size=grid * patch, num_heads=12)
    return timm_encoder(name, image_size=grid * patch)


def _numbers(weights: Weights, module: str) -> set[str]:
    """The numbers in the keys ``module.NUMBER.``."""
    return {name.split(".")[1] for name in weights if re.match(rf"{module}\.\d+\.", name)}


def _check(weights: Weights, encoder: nn.Module, source: str) -> None:
    """Refuse weights that are not exactly the encoder's, all differences at once."""
    own = encoder.state_dict()
    missing, unexpected = [name for name in own if name not in weights], [name for name in weights if name not in own]
    shapes = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names]
    if problems:
        raise ValueError(
            f"The weights in {source} do not fit {_title(encoder)}. {'. '.join(problems)}. Pass the network they are "
            "of, without its head, as encoder; a file that holds more or less than that must be put right first."
        )


def _title(encoder: nn.Module) -> str:
    architecture = getattr(encoder, "default_cfg", {}).get("architecture")
    return f"{type(encoder).__name__} {architecture}" if architecture else type(encoder).__name__


def _listed(names: Iterable[str]) -> str:
    names = [str(name) for name in names]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
