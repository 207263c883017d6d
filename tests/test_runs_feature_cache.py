"""Features kept on the disk: what they depend on, and what becomes of a file damaged, half written or shared."""

import copy
import multiprocessing as mp
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from contrastive.augmentations import CIFAR10, CenterCrop, Resize, Views, evaluation_views, simclr_views, views_from
from contrastive.data import ImageFolders, TensorImages
from contrastive.data.manifest import manifest
from contrastive.encoders import resnet10
from contrastive.evaluation import Features
from contrastive.runs.feature_cache import (
    CacheWarning,
    FeatureCache,
    about_features,
    default_folder,
    key_of,
    weights_digest,
)
from contrastive.runs.frozen import FrozenTask
from tests import tiny
from tests.ranks import Ranks
from tests.test_data_manifest import write_images

KEY = "0123abcd"
VIEWS = simclr_views(8, blur=False)
CPU = torch.device("cpu")


def features_of(count: int = 5, *, labelled: bool = True, seed: int = 0) -> Features:
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return Features(values, torch.arange(count) % 2 if labelled else None, 2 * torch.arange(count))


def equal(one: Features | None, other: Features) -> bool:
    same_labels = one is not None and (
        (one.labels is None) == (other.labels is None) and (one.labels is None or one.labels.equal(other.labels))
    )
    return one is not None and same_labels and one.features.equal(other.features) and one.index.equal(other.index)


# Files


@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_kept_comes_back_bit_for_bit_and_anybody_can_read_what_it_is_of(tmp_path: Path, labelled: bool) -> None:
    cache, features = FeatureCache(tmp_path / "new" / "folder"), features_of(labelled=labelled)
    assert cache.read(KEY) is None
    cache.write(KEY, features, {"weights": "of chance"})
    assert equal(cache.read(KEY), features)
    assert [file.name for file in cache.folder.iterdir()] == [f"{KEY}.safetensors"]
    with safe_open(cache.file(KEY), framework="np") as opened:
        assert opened.metadata()["about"] == '{"weights": "of chance"}'
        assert np.array_equal(opened.get_tensor("features"), features.features.numpy())


def test_whoever_may_read_the_folders_other_files_may_read_features(tmp_path: Path) -> None:
    FeatureCache(tmp_path).write(KEY, features_of(), {})
    (tmp_path / "any").touch()
    assert (tmp_path / f"{KEY}.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_any_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    cache, features = FeatureCache(tmp_path), features_of()
    cache.write(KEY, features, {"a": "b"})
    content = cache.file(KEY).read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        cache.file(KEY).write_bytes(flipped)
        with pytest.warns(CacheWarning, match=r"cannot be used: .*\. They are extracted again\.$") as warned:
            assert cache.read(KEY) is None, place
        assert "\n" not in str(warned[0].message)
    cache.file(KEY).write_bytes(content)
    assert equal(cache.read(KEY), features)


def test_a_file_cut_short_anywhere_is_noticed(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, features_of(), {})
    content = cache.file(KEY).read_bytes()
    for length in range(len(content)):
        cache.file(KEY).write_bytes(content[:length])
        with pytest.warns(CacheWarning, match="cannot be used"):
            assert cache.read(KEY) is None, length
    cache.file(KEY).write_bytes(content + b"\0")
    with pytest.warns(CacheWarning, match="cannot be used"):
        assert cache.read(KEY) is None


def test_the_file_of_another_key_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write("other", features_of(), {})
    os.rename(cache.file("other"), cache.file(KEY))
    with pytest.warns(CacheWarning, match="their checksum is another, so the file is torn or was altered"):
        assert cache.read(KEY) is None


def test_where_nothing_can_be_written_the_evaluation_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(CacheWarning, match=r"^The features could not be kept in .*file/features: .*Not a directory"):
        FeatureCache(tmp_path / "file" / "features").write(KEY, features_of(), {})
    assert FeatureCache(tmp_path / "file" / "features").read(KEY) is None


def test_a_folder_that_cannot_be_looked_into_is_reported_and_the_evaluation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    monkeypatch.setattr("pathlib.Path.stat", denied)
    with pytest.warns(CacheWarning, match="cannot be used: Permission denied"):
        assert FeatureCache(tmp_path).read(KEY) is None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, features_of(), {})
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, kept[1]))  # as a full disk: a write fails in its middle
    try:
        with pytest.warns(CacheWarning, match=r"could not be kept in .* The next evaluation extracts them again\.$"):
            cache.write(KEY, features_of(5_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert [file.name for file in tmp_path.iterdir()] == [f"{KEY}.safetensors"]
    assert equal(cache.read(KEY), features_of())


def test_what_a_killed_process_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    old, new = [f"{KEY}-1.part", ".tmpQx7abc"], [f"{KEY}-2.part", ".tmpZ19def"]
    for name in old + new:
        (tmp_path / name).write_bytes(b"half")
    for name in old:
        os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    FeatureCache(tmp_path).write(KEY, features_of(), {})
    assert {file.name for file in tmp_path.iterdir()} == {*new, f"{KEY}.safetensors"}


def write_for_ever(folder: Path, count: int, seed: int) -> None:
    features = features_of(count, seed=seed)
    while True:
        FeatureCache(folder).write(KEY, features, {"seed": str(seed)})


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    process = mp.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_killed_while_it_writes_leaves_the_old_features_the_new_or_none(tmp_path: Path) -> None:
    count, halves = 1_000_000, 0
    new = features_of(count, seed=1)
    for attempt in range(12):
        cache = FeatureCache(tmp_path / str(attempt))
        writer = in_process(write_for_ever, cache.folder, count, 1)
        while not list(cache.folder.glob("*.part")):
            time.sleep(0.001)
        time.sleep(0.002 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        halves += any(file.stat().st_size > 0 for file in cache.folder.iterdir() if file != cache.file(KEY))
        found = cache.read(KEY)  # warnings are errors
        assert found is None or equal(found, new)
    assert halves > 0  # some were killed inside


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_write_the_same_key_at_once_leave_it_whole_at_every_moment(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write(KEY, features_of(20_000, seed=1), {})
    writers = [in_process(write_for_ever, tmp_path, 20_000, seed) for seed in (1, 2)]
    either, seen = [features_of(20_000, seed=seed) for seed in (1, 2)], Counter[int]()
    end = time.monotonic() + 30
    while (len(seen) < 2 or seen.total() < 300) and time.monotonic() < end:
        found = cache.read(KEY)  # warnings are errors
        (which,) = (number for number, one in enumerate(either) if equal(found, one))
        seen[which] += 1
    for writer in writers:
        writer.kill()
        writer.join()
    assert len(seen) == 2


# Keys


def key(encoder: nn.Module, views: Any = VIEWS, data: Any = None, split: str = "train", **options: Any) -> str:
    about = about_features(encoder, views, manifest(data or tiny.data(8), split), device=CPU, **options)
    return key_of(about)


def test_a_key_is_the_same_for_the_same_things_built_again() -> None:
    encoder = tiny.ConvEncoder()
    again = tiny.ConvEncoder()
    again.load_state_dict(encoder.state_dict())
    again.eval()
    assert key(encoder, simclr_views(8, blur=False)) == key(again, simclr_views(8, blur=False), tiny.data(8))
    assert key(encoder, data=tiny.data(8, batch_size=2)) == key(encoder, data=tiny.data(8))


def test_one_weight_by_one_ulp_or_one_statistic_of_batch_norm_makes_another_key() -> None:
    encoder = tiny.ConvEncoder()
    keys = [(key(encoder), weights_digest(encoder))]
    with torch.no_grad():
        encoder[0].weight[3, 1, 2, 0] = torch.nextafter(encoder[0].weight[3, 1, 2, 0], torch.tensor(9.0))
    keys.append((key(encoder), weights_digest(encoder)))
    encoder[1].running_var[5] += 1e-6
    keys.append((key(encoder), weights_digest(encoder)))
    encoder.half()
    keys.append((key(encoder), weights_digest(encoder)))
    assert [len(set(each)) for each in zip(*keys, strict=True)] == [4, 4]


def test_networks_of_one_set_of_weights_that_compute_differently_have_different_keys() -> None:
    def vit(num_heads: int) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=0, img_size=32, num_heads=num_heads)

    two, four = vit(2), vit(4)  # as a ViT-S has 6 heads, and MoCo v3's 12
    assert weights_digest(two) == weights_digest(four)
    assert key(two) == key(vit(2))
    assert key(two) != key(four)

    encoder = resnet10(stem="small", width=4)
    padded = copy.deepcopy(encoder)
    padded.conv1.padding = (2, 2)
    leaky = copy.deepcopy(encoder)
    leaky.bn1.eps = 1e-3
    assert len({key(encoder), key(padded), key(leaky)}) == 3


class Scaled(nn.Module):
    """A buffer that is not saved, a tensor that is no buffer, and a function, which lies elsewhere in every process."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.shift = torch.tensor(shift)
        self.activation = nn.functional.relu

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(images.mean((2, 3)) * self.scale + self.shift)


def test_what_is_not_among_the_saved_weights_counts_too() -> None:
    assert len({key(Scaled(*both)) for both in ((1.0, 0.0), (2.0, 0.0), (1.0, 1e-7))}) == 3


def test_one_pixel_one_label_and_one_image_more_make_another_key() -> None:
    encoder, images, labels = tiny.ConvEncoder(), tiny.images(8), torch.arange(8)
    changed, relabelled = images.clone(), labels.clone()
    changed[7, 2, 7, 7] ^= 1
    relabelled[3] = 5
    sets = [
        TensorImages(*both, batch_size=4)
        for both in ((images, labels), (changed, labels), (images, relabelled), (images[:7], labels[:7]))
    ]
    assert len({key(encoder, data=data) for data in sets}) == 4


def test_every_number_of_the_evaluation_view_makes_another_key() -> None:
    views = [
        evaluation_views(8),
        evaluation_views(10),
        evaluation_views(8, resize=8),
        evaluation_views(8, interpolation="bicubic"),
        evaluation_views(8, normalize=CIFAR10),
        evaluation_views(8, normalize=None),
        replace(evaluation_views(8), dtype=torch.bfloat16),
        simclr_views(8, blur=False),
        simclr_views(10, blur=False),
        simclr_views(8, blur=False, normalize=replace(CIFAR10, std=(0.2470, 0.2435, 0.26160001))),
        Views([[CenterCrop(8)]], evaluation=[Resize(12), CenterCrop(8)]),
    ]
    encoder = tiny.ConvEncoder()
    assert len({key(encoder, one) for one in views}) == len(views)


def test_images_read_at_another_size_make_another_key(tmp_path: Path) -> None:
    folder, encoder = write_images(tmp_path, {"train": 6}), tiny.ConvEncoder()

    def read(image_size: int) -> ImageFolders:
        return ImageFolders(folder / "train", image_size=image_size, batch_size=2, num_workers=0)

    assert key(encoder, data=read(8)) == key(encoder, data=read(8))
    assert key(encoder, data=read(8)) != key(encoder, data=read(10))


def test_precision_split_blocks_and_versions_make_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny.ConvEncoder()
    options: list[dict[str, Any]] = [{}, {"precision": "bf16-mixed"}, {"blocks": True}, {"split": "val"}]
    keys = [key(encoder, **one) for one in options]
    monkeypatch.setattr("contrastive.runs.feature_cache.metadata.version", lambda name: "9.9")
    keys.append(key(encoder))
    monkeypatch.setattr("contrastive.runs.feature_cache._own_code", lambda: "edited")
    keys.append(key(encoder))
    assert len(set(keys)) == 6


def keys_here() -> list[str]:
    """Of the same networks in every process."""
    vit = timm.create_model("test_vit", num_classes=0, img_size=32)
    networks = [resnet10(stem="small", width=4), vit, Scaled(1.0, 0.0)]
    torch.manual_seed(0)
    for network in networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    return [key(network) for network in networks]


def test_another_process_makes_the_same_keys(two_ranks: Ranks) -> None:
    assert two_ranks(keys_here) == [keys_here()] * 2
    assert len(set(keys_here())) == 3


def test_a_class_whose_code_changes_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "from torch import nn\nclass Halved(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3)) / 2\n"
    )
    keys = []
    for version, text in enumerate((code, code.replace("/ 2", "/ 3"))):
        (tmp_path / f"somebodys{version}").mkdir()
        (tmp_path / f"somebodys{version}" / "encoder_of_theirs.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / f"somebodys{version}")
        sys.modules.pop("encoder_of_theirs", None)
        module = __import__("encoder_of_theirs")
        keys.append(key(module.Halved()))
    assert keys[0] != keys[1]


# In a task


def test_a_second_task_reads_what_the_first_one_kept_and_encodes_nothing(tmp_path: Path) -> None:
    encoder, encoded = tiny.ConvEncoder(), []
    encoder.register_forward_hook(lambda *_: encoded.append(1))
    first, second = (
        FrozenTask(encoder, VIEWS, tiny.data(20), cache=FeatureCache(tmp_path), exclude=out)
        for out in (None, torch.tensor([3, 5]))
    )
    wanted = {split: first.features(split) for split in ("train", "val")}
    assert encoded
    encoded.clear()
    again = {split: second.features(split) for split in ("train", "val")}
    assert not encoded
    assert equal(again["val"], wanted["val"])
    kept = torch.tensor([number for number in range(20) if number not in (3, 5)])
    assert equal(again["train"], wanted["train"].rows(kept))  # what is left out is not part of the key


def test_a_manifest_that_is_known_already_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, encoder, data = FeatureCache(tmp_path), tiny.ConvEncoder(), tiny.data(20)
    known = {split: manifest(data, split) for split in ("train", "val")}
    wanted = FrozenTask(encoder, VIEWS, data, cache=cache).features("val")
    monkeypatch.delattr("contrastive.runs.frozen.manifest")
    encoder.register_forward_hook(lambda *_: pytest.fail("encoded again"))
    assert equal(FrozenTask(encoder, VIEWS, data, cache=cache, manifests=known).features("val"), wanted)


def test_a_damaged_file_is_reported_and_written_anew(tmp_path: Path) -> None:
    cache, encoder = FeatureCache(tmp_path), tiny.ConvEncoder()
    wanted = FrozenTask(encoder, VIEWS, tiny.data(20), cache=cache).features("val")
    (file,) = tmp_path.iterdir()
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 4
    file.write_bytes(whole)
    with pytest.warns(CacheWarning, match="cannot be used: their checksum is another"):
        found = FrozenTask(encoder, VIEWS, tiny.data(20), cache=cache).features("val")
    assert equal(found, wanted)
    assert equal(FrozenTask(encoder, VIEWS, tiny.data(20), cache=cache).features("val"), wanted)  # without a warning


def test_views_and_classes_that_no_key_can_be_made_of_are_said_and_not_kept(tmp_path: Path) -> None:
    views = views_from(lambda images: images)
    with pytest.warns(
        CacheWarning, match=r"^Features of validation images are not kept: what TransformViews do to an im"
    ):
        FrozenTask(tiny.ConvEncoder(), views, tiny.data(20), cache=FeatureCache(tmp_path)).features("val")
    typed: dict[str, Any] = {"nn": nn, "__name__": "__main__"}
    exec(
        "class Typed(nn.AdaptiveAvgPool2d):\n    def forward(self, x):\n        return super().forward(x).flatten(1)",
        typed,
    )
    task = FrozenTask(typed["Typed"](1), VIEWS, tiny.data(20), cache=FeatureCache(tmp_path))
    with pytest.warns(CacheWarning, match=r"are not kept: the source of Typed is not known\. Define it in a file"):
        assert task.features("val").features.shape == (10, 3)
    assert not list(tmp_path.iterdir())


def features_by_rank(folder: Path, files_of_rank: bool) -> tuple[list[Tensor | None], int]:
    """What a rank gets, and how often its encoder ran. Each rank may have a folder of its own."""
    torch.manual_seed(0)
    number = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    encoder, encoded = tiny.DenseEncoder(), []
    encoder.register_forward_hook(lambda *_: encoded.append(1))
    cache = FeatureCache(folder / str(number) if files_of_rank else folder)
    found = FrozenTask(encoder, VIEWS, tiny.data(17, num_classes=3), cache=cache).features("train")
    return [found.features, found.labels, found.index], len(encoded)


@pytest.mark.parametrize("files_of_rank", [False, True], ids=["one folder", "rank 0's folder seen by it alone"])
def test_rank_zero_reads_and_writes_for_all(tmp_path: Path, three_ranks: Ranks, files_of_rank: bool) -> None:
    first = three_ranks(features_by_rank, tmp_path, files_of_rank)
    second = three_ranks(features_by_rank, tmp_path, files_of_rank)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    for (features, encodings), (again, no_encodings) in zip(first, second, strict=True):
        assert (encodings > 0, no_encodings) == (True, 0)
        for one, other, whole in zip(features, again, first[0][0], strict=True):
            assert one.equal(other)
            assert one.equal(whole)
    alone, encodings = features_by_rank(tmp_path / "0" if files_of_rank else tmp_path, False)
    assert encodings == 0  # what three processes kept, one reads
    assert alone[0].equal(first[0][0][0])


def test_the_folder_of_what_belongs_to_no_run_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/contrastive/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert default_folder() == Path("/home/of/somebody/.cache/contrastive/features")
