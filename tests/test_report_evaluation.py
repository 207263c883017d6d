"""What a person sees of an evaluation: every number at its place, and every reason to doubt it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from contrastive.report.evaluation import AT_EDGE, caveats, customary_metric, markdown, save, screen
from contrastive.runs.evaluation_record import EvaluationRecord, ProtocolResult
from tests.evaluations import PROVENANCE, confusion_of, data_set, evaluation, record, result

CONFUSION = confusion_of([[18, 2], [5, 15]])


def seen(what: EvaluationRecord, *, width: int = 80) -> list[str]:
    """Lines of the screen, as a pipe gets them."""
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(what))
    return [line.rstrip() for line in capture.get().splitlines()]


def line_with(words: str, lines: list[str]) -> str:
    (found,) = [line for line in lines if words in line]
    return found


# ------------------------------------------------------------------------------------------------ the customary metric


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        ("aircraft FGVC-Aircraft fgvc_aircraft FGVCAircraft", "mean_per_class"),
        ("pets Oxford-IIIT-Pets oxford_iiit_pet OxfordIIITPet", "mean_per_class"),
        ("caltech101 Caltech-101", "mean_per_class"),
        ("flowers flowers102 Oxford-102-Flowers oxford_flowers102 VGG-Flowers", "mean_per_class"),
        ("food101 Food-101 cifar10 CIFAR-100 birdsnap sun397 cars StanfordCars dtd", "top1"),
        ("my_images carpets vocals flowerbeds caltech256 petsandcars imagenet", "top1"),
    ],
)
def test_each_data_set_has_the_metric_of_the_papers(names: str, metric: str) -> None:
    assert {name: customary_metric(name) for name in names.split()} == dict.fromkeys(names.split(), metric)


@pytest.mark.parametrize("name", ["voc2007", "VOC", "Pascal-VOC-2007", "voc07", "PASCAL_VOC2012"])
def test_a_data_set_of_several_labels_an_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="labels") as error:
        customary_metric(name)
    assert str(error.value) == (
        f"{name} has several labels an image and is reported by 11-point mean average precision, which is not "
        "supported. Leave it out; if your folder has one label an image, give it another name."
    )


# ---------------------------------------------------------------------------------------------------------- the screen


def scores(top1: float, top5: float, mean_per_class: float) -> dict[str, float]:
    return {"top1": top1, "top5": top5, "mean_per_class": mean_per_class}


def long_results() -> list[ProtocolResult]:
    """As wide as they come: long names, several seeds, draws, settings of many words, large numbers."""
    wide = [
        replace(
            evaluation(
                scores=scores(0.98761 + seed / 1000, 1.0, 0.12345),
                chosen={"learning_rate": 0.0003 * (seed + 1), "input": "4 blocks and the mean patch token"},
                at_edge=("learning_rate",),
                spread={"top1": 0.0123},
            ),
            num_train=1281167,
            num_test=50000,
        )
        for seed in range(3)
    ]
    return [result("few-label", *wide), result("knn-dino", *wide), result("simclr-transfer", *wide)]


def test_80_columns_hold_every_number_beside_its_name() -> None:
    values = [0.98761, 0.98861, 0.98961]
    top1 = f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
    assert top1 == "98.86 ± 0.10"
    lines = seen(record(data_set("shapes", *long_results()), name="resnet50_pretrained_somewhere, 1000 epochs"))
    assert max(map(len, lines)) <= 80
    protocol = [line for line in lines if "few-label" in line]
    assert re.search(rf"few-label +top-1 % +{re.escape(top1)} ", protocol[0])
    for words, number in {
        "top-1 %": top1,
        "over draws": "± 1.23",
        "top-5 %": "100.00 ± 0.00",
        "mean per class %": "12.35 ± 0.00",
    }.items():
        found = [line for line in lines if words in line]
        assert len(found) == 3
        assert all(re.search(rf"{words} +{re.escape(number)} ", line) for line in found)
    text = "\n".join(lines)
    assert text.count("1,281,167") == text.count(" 50,000") == 3
    assert text.count("4.5") == 3  # seconds of three seeds


def test_one_seed_has_no_deviation() -> None:
    lines = seen(record(data_set("shapes", result("coin", evaluation(0.75)))))
    assert re.search(r"top-1 % +75\.00 ", line_with("top-1", lines))
    assert "±" not in "".join(lines)


def test_what_is_no_share_is_not_written_in_percent() -> None:
    found = evaluation(scores={"rankme": 123.456, "uniformity": -1.5, "accuracy": 0.5, "recall at 1": 0.25})
    lines = seen(record(data_set("shapes", result("coin", found))))
    assert re.search(r"RankMe +123\.5\b", line_with("RankMe", lines))
    assert re.search(r"uniformity +-1\.5\b", line_with("uniformity", lines))
    assert re.search(r"accuracy % +50\.00$", line_with("accuracy", lines))
    assert re.search(r"recall % at 1 +25\.00$", line_with("recall", lines))


def test_what_was_chosen_at_the_edge_of_its_grid_is_marked_and_says_what_to_do() -> None:
    inside = evaluation(chosen={"l2": 1e-3, "k": 20})
    edge = evaluation(chosen={"l2": 1e-6, "k": 20}, at_edge=("l2",))
    lines = seen(record(data_set("shapes", result("coin", inside, edge))))
    assert "l2 0.001 / 1e-06*" in "\n".join(lines)
    assert "k 20*" not in "\n".join(lines)
    assert AT_EDGE in " ".join(line.strip() for line in lines)
    assert "*" not in "".join(seen(record(data_set("shapes", result("coin", inside)))))


def test_reasons_to_doubt_a_number_stand_beneath_it() -> None:
    doubtful = evaluation(
        scores={"top1": math.nan, "mean_per_class": 0.5},
        details={"converged": False, "k": 30, "k_lowered_from": 200, "batch_size_lowered_from": 4096},
    )
    expected = [
        "A solver stopped short of its optimum; evaluation.json says how far.",
        "Lowered for want of images: k from 200 to 30.",
        "Lowered for want of images: batch size from 4096.",
        "top-1: not a number.",
    ]
    assert caveats(result("coin", evaluation(details={"converged": True}))) == []
    assert caveats(result("coin", doubtful)) == expected
    weak = evaluation(details={"converged": False, "not_converged_l2": [1e-5, 1e-6]})
    assert caveats(result("coin", weak)) == [
        "A solver stopped short of its optimum at l2 1e-06, 1e-05; evaluation.json says how far."
    ]
    found = record(data_set("shapes", result("coin", doubtful, doubtful), duplicates_removed=1234))
    text = " ".join(line.strip() for line in seen(found))
    assert all(f"coin: {caveat}" in text for caveat in expected)
    assert "1,234 training images are test images too and were left out." in text
    assert re.search(r"top-1 % +NaN ", text)
    assert "NaN ±" not in text


def test_seeds_that_used_different_numbers_of_images_say_so() -> None:
    found = [replace(evaluation(), num_train=count) for count in (1200, 1180, 1190)]
    lines = seen(record(data_set("shapes", result("coin", *found))))
    place = next(number for number, line in enumerate(lines) if "coin" in line)
    assert [line.split()[-1] for line in lines[place : place + 3]] == ["4.5", "1,200", "40"]
    assert " 1,180 to " in lines[place]


def test_names_are_no_markup() -> None:
    name = "[red]x[/red] | [/] $y$ 日本"
    lines = seen(record(data_set(name, result(f"{name}!")), name=name))
    assert f"{name} on {name}" in lines[1]
    assert f"{name}!" in "\n".join(lines)


# -------------------------------------------------------------------------------------------------- the transfer table


def test_data_sets_side_by_side_are_each_by_their_metric() -> None:
    several = [evaluation(scores=scores(0.7, 0.9, 0.6)), evaluation(scores=scores(0.8, 0.9, 0.66))]
    cars = data_set("cars", result("logistic", *several), result("knn", *several))
    pets = data_set("pets", result("logistic", *several))
    rank = result("rank", evaluation(scores={"rankme": 12.0}))
    lines = seen(record(cars, replace(pets, results=(*pets.results, rank))))
    place = next(number for number, line in enumerate(lines) if "Side by side" in line)
    table = lines[place:]
    heading = " ".join(line.strip() for line in table[: table.index("")])
    assert heading == "Side by side: accuracy in percent, by the metric customary for each data set"
    assert line_with("encoder", table).split() == ["encoder", "protocol", "top-1", "mean", "per", "class"]
    top1, per_class = np.array([0.7, 0.8]), np.array([0.6, 0.66])
    expected = [f"{100 * one.mean():.2f} ± {100 * one.std(ddof=1):.2f}" for one in (top1, per_class)]
    assert re.search(rf"tiny +logistic +{expected[0]} +{expected[1]}", line_with("logistic", table))
    assert line_with("knn", table).split() == ["knn", *expected[0].split()]  # nothing for the second data set
    assert "rank" not in "".join(table)


def test_one_data_set_alone_has_no_transfer_table_but_beside_baselines() -> None:
    assert "Side by side" not in "".join(seen(record()))
    pixels = record(
        data_set("shapes", result("coin", evaluation(0.31, chosen={"l2": 1}, at_edge=("l2",)))), name="pixels"
    )
    lines = seen(record(baselines=(pixels,)))
    place = next(number for number, line in enumerate(lines) if "Side by side" in line)
    assert re.search(r"pixels +coin +31\.00\*", line_with("pixels", lines[place:]))
    assert re.search(r"tiny +coin +75\.00$", line_with("tiny", lines[place:]))
    assert any("Chosen at the edge" in line for line in lines[place:])


def test_twelve_data_sets_are_read_in_80_columns() -> None:
    several = tuple(evaluation(0.5 + n / 100) for n in range(3))
    twelve = [data_set(f"data_set_{n}", result("few-label-1", *several)) for n in range(12)]
    lines = seen(record(*twelve, name="resnet50_of_somebody_else, 1000 epochs"))
    assert max(map(len, lines)) <= 80
    place = next(number for number, line in enumerate(lines) if "Side by side" in line)
    text = "\n".join(lines[place:])
    assert all(f"data_set_{n}" in text for n in range(12))
    assert text.count("51.00 ± 1.00") == 12


# ------------------------------------------------------------------------------------------------------- evaluation.md


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table, whose cells are parted by bars that are not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_page_says_what_each_protocol_did_with_its_numbers_and_source(tmp_path: Path) -> None:
    found = evaluation(0.75, chosen={"l2": 1e-6}, at_edge=("l2",), details={"converged": False})
    page = markdown(
        record(data_set("shapes", result("coin", found, depth={"by_a": 0.5, "b": None, "c": True, "d": []}))), tmp_path
    )
    paragraph = page.partition("### shapes: coin\n\n")[2].partition("\n\n")[0]
    assert paragraph == (
        "Every image is taken for the class that the coin says. Set to: coins 9 values from 0 to 8; depth by a 0.5, b "
        "none, c yes, d none. Source: Nobody 2026, table 1, <https://example.org/a_b/coin_toss.py>. "
        "Chosen on training images: l2 1e-06\\*. "
        "Seed 0. Chosen at the edge of its grid: a wider grid might do better. Widen it before you compare. "
        "A solver stopped short of its optimum; evaluation.json says how far."
    )


def test_the_page_says_what_was_evaluated_and_where(tmp_path: Path) -> None:
    other = replace(result("dice"), provenance=replace(PROVENANCE, commit="another"))
    shapes = data_set("shapes", result("coin"), other, duplicates_removed=7, extraction_seconds=12.34)
    others = data_set("pets"), data_set("drawn", result("sum"), root="", duplicates_removed=None)
    lines = markdown(record(shapes, *others), tmp_path).splitlines()
    for line in [
        "# Evaluation of tiny",
        "- checkpoint: last.ckpt",
        "- epochs of training: 3",
        "- parameters: 12,345",
        "- feature width: 16",
        "- weights, SHA-256: abc",
        "## shapes",
        "- images: 1,200 for training, 40 for testing, 2 classes",
        "- training images that are test images too: 7, left out",
        "- training images that are test images too: nobody looked for any",
        "- training images that are test images too: none",
        "- folder: /images/pets",
        "- what the encoder sees: resize to 32",
        "- features took: 12.3 s",
        "- results: tiny on shapes: coin; tiny on pets: coin; tiny on drawn: sum",
        "- results: tiny on shapes: dice",
        "- command: contrastive evaluate 'runs/my run'",
        "- commit: another",
        "- machine: cpu a processor",
    ]:
        assert line in lines
    assert lines.count("- versions: python 3.11.7, torch 2.10") == 2
    assert len([line for line in lines if line.startswith("- folder")]) == 2  # drawn images have none


def test_the_pages_tables_have_the_numbers_of_the_screen(tmp_path: Path) -> None:
    several = (evaluation(0.7), evaluation(0.8))
    lines = markdown(record(data_set("cars", result("coin", *several)), data_set("pets")), tmp_path).splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[0] == ["encoder", "protocol", "cars<br>top-1", "pets<br>mean per class"]
    assert rows[2] == ["tiny", "coin", "75.00 ± 7.07", "37.50"]
    assert rows[5] == [
        "coin", "top-1 %<br>mean per class %", "75.00 ± 7.07<br>37.50 ± 3.54", "", "1,200<br>40", "3.0"
    ]  # fmt: skip


def test_names_do_not_break_the_page(tmp_path: Path) -> None:
    name = "a|b *c* [d](e) <f> `g` #h _i_ &amp; \\ 日本"
    found = record(data_set(name, result(name)), data_set("pets"), name=name)
    lines = markdown(found, tmp_path).splitlines()
    escaped = r"a\|b \*c\* \[d\](e) \<f\> \`g\` \#h \_i\_ \&amp; \\ 日本"
    assert lines[0] == f"# Evaluation of {escaped}"
    tables = [cells(line) for line in lines if line.startswith("|")]
    assert {len(row) for row in tables[:4]} == {4}
    assert {len(row) for row in tables[4:]} == {6}
    assert tables[2][:2] == [escaped, escaped]


# ---------------------------------------------------------------------------------------------------- what is written


def links(folder: Path) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (folder / "evaluation.md").read_text())


def test_everything_lies_in_the_folder_and_is_linked(tmp_path: Path) -> None:
    rank = result("rank", evaluation(scores={"rankme": 12.0}))
    folder = tmp_path / "new"
    saved = save(record(data_set("my/shapes", result("coin", evaluation(confusion=CONFUSION)), rank)), folder)
    assert saved.aside is None
    assert sorted(saved.files) == sorted(file for file in folder.rglob("*") if file.is_file())
    assert saved.record.to_json() == json.loads((folder / "evaluation.json").read_text())
    assert len(links(folder)) == 2  # what classifies nothing has no pictures
    assert {folder / link for link in links(folder)} == {file for file in saved.files if file.suffix == ".png"}
    assert all(
        re.fullmatch(r"evaluation/my-shapes-coin-\w{8}-(confusion|classes)\.png", link) for link in links(folder)
    )


def test_later_protocols_keep_the_earlier_rows_and_pictures(tmp_path: Path) -> None:
    save(record(data_set("shapes", result("coin", evaluation(0.1, confusion=CONFUSION)))), tmp_path)
    first = {link: (tmp_path / link).read_bytes() for link in links(tmp_path)}
    saved = save(record(data_set("shapes", result("dice", evaluation(0.9, confusion=CONFUSION)))), tmp_path)
    assert len(links(tmp_path)) == 4
    assert all((tmp_path / link).read_bytes() == content for link, content in first.items())
    text = "\n".join(seen(saved.record))
    assert "10.00" in text
    assert "90.00" in text


def test_a_page_that_was_put_aside_keeps_its_pictures(tmp_path: Path) -> None:
    save(record(data_set("shapes", result("coin", evaluation(confusion=CONFUSION))), weights="a"), tmp_path)
    first = {link: (tmp_path / link).read_bytes() for link in links(tmp_path)}
    turned = CONFUSION.flip(0)
    saved = save(record(data_set("shapes", result("coin", evaluation(confusion=turned))), weights="b"), tmp_path)
    assert saved.aside is not None
    page = saved.aside.with_suffix(".md").read_text()
    assert all(link in page and (tmp_path / link).read_bytes() == content for link, content in first.items())
    assert not set(links(tmp_path)) & set(first)


def test_the_pictures_are_of_the_first_seed_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "contrastive.report.evaluation.save_confusion",
        lambda confusion, classes, file, *, title: drawn.append((confusion.tolist(), classes, title)),
    )
    seeds = (evaluation(confusion=CONFUSION), evaluation(confusion=CONFUSION.flip(0)))
    save(record(data_set("shapes", result("coin", *seeds))), tmp_path)
    assert drawn == [(CONFUSION.tolist(), ("circle", "square"), "tiny on shapes, coin, seed 0")]
