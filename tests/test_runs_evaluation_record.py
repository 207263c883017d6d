"""The record of an evaluation: what is written, what comes back, and what a later evaluation does to it."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrastive.runs.evaluation_record import EvaluationRecord, Provenance, plain, store
from tests.evaluations import PROVENANCE, Guess, confusion_of, data_set, evaluation, record, result


def written(folder: Path) -> Any:
    return json.loads((folder / "evaluation.json").read_text())


def protocols(content: Any) -> dict[str, list[str]]:
    """The protocols of each data set of a file."""
    return {data["name"]: [one["protocol"] for one in data["results"]] for data in content["data_sets"]}


def test_the_file_has_these_keys_in_this_order(tmp_path: Path) -> None:
    store(record(baselines=(record(name="pixels"),)), tmp_path)
    content = written(tmp_path)
    assert list(content) == ["format", "encoder", "data_sets", "baselines"]
    assert content["format"] == "contrastive evaluation 1"
    encoder, (data,), (baseline,) = content["encoder"], content["data_sets"], content["baselines"]
    assert list(encoder) == ["name", "checkpoint", "epochs", "num_parameters", "num_features", "weights_sha256"]
    assert list(data) == [
        *("name", "root", "num_train", "num_test", "classes", "duplicates_removed", "manifest_sha256", "transform"),
        *("extraction_seconds", "results"),
    ]
    (found,) = data["results"]
    keys = ["protocol", "description", "hyper_parameters", "mean", "std", "trials", "provenance"]
    assert list(found) == keys
    assert list(found["hyper_parameters"]) == ["source", "coins", "depth"]
    assert list(found["trials"][0]) == [
        *("seed", "seconds", "num_train", "num_test", "scores", "spread", "chosen", "at_edge", "details"),
        *("per_class", "confusion"),
    ]
    assert list(found["provenance"]) == ["when", "command", "commit", "versions", "hardware"]
    assert list(baseline) == list(content)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    found = evaluation(
        confusion=confusion_of([[3, 1], [0, 2]]),
        chosen={"l2": 1e-6, "input": "blocks"},
        at_edge=("l2",),
        details={"held_out_top1": {1e-6: 0.5}, "k": np.int64(3), "norms": torch.tensor([1.5, 2.0]), "file": Path("a")},
        spread={"top1": 0.01},
    )
    classes = ("[\n  1,\n  2\n]", "日本 | [red]")
    stored = store(record(data_set("shapes", result("coin", found, evaluation(0.5)), classes=classes)), tmp_path)
    back = EvaluationRecord.from_json(written(tmp_path))
    assert back.to_json() == stored.record.to_json() == written(tmp_path)
    (data,) = back.data_sets
    assert data.classes == classes
    first, second = data.results[0].trials
    assert (first.seed, second.seed) == (0, 1)
    assert first.evaluation.scores == {"top1": 0.75, "mean_per_class": 0.375}
    assert first.evaluation.chosen == {"l2": 1e-6, "input": "blocks"}
    assert first.evaluation.at_edge == ("l2",)
    assert first.evaluation.spread == {"top1": 0.01}
    assert first.evaluation.details == {"held_out_top1": {"1e-06": 0.5}, "k": 3, "norms": [1.5, 2.0], "file": "a"}
    assert first.evaluation.confusion is not None
    assert first.evaluation.confusion.tolist() == [[3, 1], [0, 2]]
    assert first.evaluation.confusion.dtype == torch.int64
    assert second.evaluation.confusion is second.per_class is None


def test_no_finite_number_is_null_and_comes_back_as_none(tmp_path: Path) -> None:
    lost = evaluation(scores={"top1": math.nan, "loss": math.inf})
    store(record(data_set("shapes", result("coin", lost, coins=(1.0, math.inf)))), tmp_path)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = written(tmp_path)["data_sets"][0]["results"][0]
    assert found["mean"] == {"top1": None, "loss": None}
    assert found["trials"][0]["scores"] == {"top1": None, "loss": None}
    assert found["hyper_parameters"]["coins"] == [1.0, None]
    back = EvaluationRecord.from_json(written(tmp_path)).data_sets[0].results[0]
    assert math.isnan(back.mean("top1"))


def test_mean_and_deviation_over_seeds_are_numpys() -> None:
    values = [0.7123, 0.7311, 0.7002, 0.7298]
    several = result("coin", *map(evaluation, values))
    assert several.mean("top1") == pytest.approx(np.mean(values), rel=1e-12)
    assert several.std("top1") == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert several.std("mean_per_class") == pytest.approx(np.std([value / 2 for value in values], ddof=1), rel=1e-12)
    assert several.to_json()["std"]["top1"] == several.std("top1")
    assert result("coin", evaluation(0.5)).std("top1") is None
    assert result("coin", evaluation(0.5)).to_json()["std"] == {"top1": None, "mean_per_class": None}


def test_the_spread_over_draws_is_kept_apart_from_that_over_seeds() -> None:
    """Of two seeds with five draws each around their own mean, the spread is that of all draws around those means."""
    draws = np.random.default_rng(0).normal(0.7, 0.02, size=(2, 5))
    found = [evaluation(one.mean(), spread={"top1": float(one.std(ddof=1))}) for one in draws]
    pooled = np.sqrt(((draws - draws.mean(1, keepdims=True)) ** 2).sum() / (2 * (5 - 1)))
    assert result("coin", *found).spread("top1") == pytest.approx(pooled, rel=1e-12)
    assert result("coin", *found).std("top1") == pytest.approx(draws.mean(1).std(ddof=1), rel=1e-12)
    assert result("coin", *found).spread("mean_per_class") is None


@pytest.mark.parametrize("num_classes", [2, 100, 101])
def test_more_than_100_classes_are_written_class_by_class_alone(num_classes: int, tmp_path: Path) -> None:
    confusion = torch.randint(0, 5, (num_classes, num_classes), generator=torch.Generator().manual_seed(0))
    confusion[1] = 0  # a class without test images
    store(record(data_set("shapes", result("coin", evaluation(confusion=confusion)))), tmp_path)
    (trial,) = written(tmp_path)["data_sets"][0]["results"][0]["trials"]
    assert trial["confusion"] == (confusion.tolist() if num_classes <= 100 else None)
    for c in range(num_classes):
        total = sum(confusion[c].tolist())
        assert trial["per_class"]["num_test"][c] == total
        assert trial["per_class"]["num_correct"][c] == int(confusion[c, c])
        assert trial["per_class"]["accuracy"][c] == (int(confusion[c, c]) / total if total else None)
    back = EvaluationRecord.from_json(written(tmp_path))
    assert back.to_json() == written(tmp_path)


def test_a_row_of_the_confusion_matrix_is_a_line_of_the_file(tmp_path: Path) -> None:
    store(record(data_set("shapes", result("coin", evaluation(confusion=confusion_of([[31, 0], [2, 7]]))))), tmp_path)
    lines = [line.strip() for line in (tmp_path / "evaluation.json").read_text().splitlines()]
    assert "[31, 0]," in lines
    assert "[2, 7]" in lines


def test_a_protocols_own_words_numbers_and_source_are_kept() -> None:
    found = result("coin", coins=(1.0, 2.0))
    assert found.description == "Every image is taken for the class that the coin says."
    assert found.hyper_parameters == {"source": Guess().source, "coins": (1.0, 2.0), "depth": None}


def test_what_is_computed_here_says_so() -> None:
    here = Provenance.here(["contrastive", "evaluate", "runs/my run"])
    assert here.command == "contrastive evaluate 'runs/my run'"
    assert here.versions["torch"] == torch.__version__
    assert here.hardware["cpu_cores"] >= 1


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError) as error:
        plain({"details": {1, 2}})
    assert str(error.value) == (
        "The record cannot hold {1, 2}, a set. Protocols give details and hyper-parameters as numbers, strings, lists "
        "and mappings."
    )


def test_two_data_sets_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Two data sets are called 'pets'\. Give each a name of its own\.$"):
        record(data_set("pets"), data_set("pets", images="others"))


# ------------------------------------------------------------------------------------------------- a second evaluation


def test_later_protocols_join_the_earlier_ones(tmp_path: Path) -> None:
    first = record(data_set("shapes", result("a"), result("b", evaluation(0.1))), data_set("pets", result("a")))
    store(first, tmp_path)
    later = record(data_set("shapes", result("c"), result("b", evaluation(0.9))), data_set("cars", result("c")))
    stored = store(later, tmp_path)
    assert stored.aside is None
    assert protocols(written(tmp_path)) == {"shapes": ["a", "b", "c"], "pets": ["a"], "cars": ["c"]}
    assert written(tmp_path)["data_sets"][0]["results"][1]["mean"]["top1"] == 0.9
    assert stored.record.to_json() == written(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_kept_results_keep_where_they_came_from(tmp_path: Path) -> None:
    store(record(data_set("shapes", result("a"))), tmp_path)
    elsewhere = replace(result("b"), provenance=replace(PROVENANCE, commit="another"))
    store(record(data_set("shapes", elsewhere)), tmp_path)
    found = written(tmp_path)["data_sets"][0]["results"]
    assert [one["provenance"]["commit"] for one in found] == ["0123456789ab", "another"]


def test_kept_results_of_many_classes_keep_their_classes(tmp_path: Path) -> None:
    many = confusion_of(torch.ones(150, 150, dtype=torch.int64).tolist())
    store(record(data_set("shapes", result("a", evaluation(confusion=many)))), tmp_path)
    store(record(data_set("shapes", result("b"))), tmp_path)
    kept = written(tmp_path)["data_sets"][0]["results"][0]["trials"][0]
    assert kept["per_class"]["num_test"] == [150] * 150


def test_baselines_are_joined_too(tmp_path: Path) -> None:
    def pixels(protocol: str, weights: str = "") -> EvaluationRecord:
        return record(data_set("shapes", result(protocol)), name="pixels", weights=weights)

    store(record(baselines=(pixels("a"), record(name="untrained", weights="x"))), tmp_path)
    store(record(baselines=(pixels("b"), record(name="untrained", weights="y"))), tmp_path)
    found = {one["encoder"]["name"]: one for one in written(tmp_path)["baselines"]}
    assert protocols(found["pixels"]) == {"shapes": ["a", "b"]}
    assert found["untrained"]["encoder"]["weights_sha256"] == "y"
    store(record(), tmp_path)
    assert len(written(tmp_path)["baselines"]) == 2


OTHERS: dict[str, Callable[[], EvaluationRecord]] = {
    "weights": lambda: record(weights="other"),
    "images": lambda: record(data_set("shapes", images="others")),
    "transform": lambda: record(data_set("shapes", transform="resize to 64")),
    "duplicates": lambda: record(data_set("shapes", duplicates_removed=None)),
    "number of images": lambda: record(data_set("shapes", num_train=1199)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_record_of_others_goes_aside(other: str, tmp_path: Path) -> None:
    store(record(data_set("shapes", result("a"))), tmp_path)
    earlier = (tmp_path / "evaluation.json").read_text()
    (tmp_path / "evaluation.md").write_text("the page")
    stored = store(OTHERS[other](), tmp_path)
    assert stored.aside is not None
    assert re.fullmatch(r"evaluation-\d{8}-\d{6}\.json", stored.aside.name)
    assert stored.aside.read_text() == earlier
    assert stored.aside.with_suffix(".md").read_text() == "the page"
    assert written(tmp_path) == OTHERS[other]().to_json()


def test_records_put_aside_do_not_replace_each_other(tmp_path: Path) -> None:
    asides = []
    for weights in ("a", "b", "c"):
        stored = store(record(weights=weights), tmp_path)
        os.utime(tmp_path / "evaluation.json", (1e9, 1e9))  # all of one second
        asides.append(stored.aside)
    assert asides[0] is None
    found = [json.loads(file.read_text())["encoder"]["weights_sha256"] for file in asides[1:] if file is not None]
    assert found == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    ['{"format": ', "[]", '{"checkpoint": "last.ckpt", "scores": {}}', '{"format": "contrastive evaluation 1"}'],
)
def test_a_file_that_is_no_such_record_goes_aside(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    stored = store(record(), tmp_path)
    assert stored.aside is not None
    assert stored.aside.read_text() == content
    assert written(tmp_path) == record().to_json()


def test_whoever_looks_while_it_is_written_sees_the_earlier_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(record(), tmp_path)
    earlier = written(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine stopped")))
    for later in (record(data_set("shapes", result("later"))), record(weights="other")):
        with pytest.raises(OSError, match="the machine stopped"):
            store(later, tmp_path)
        assert written(tmp_path) == earlier
