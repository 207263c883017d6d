"""Measured rows: where every published number of this project comes from.

A row is one JSON object on a line of ``benchmarks/results/NAME.jsonl``: what was measured, with which arguments and
seed, on which machine, with which versions, at which commit. Rows are only ever appended.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from contrastive.runs.environment import commit, hardware, versions
from contrastive.runs.folder import now

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity.

    Attributes:
        median: Of all.
        low: The smallest.
        high: The largest.
        count: How many there are.
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.median:.3g} (one run)"
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, n = {self.count})"


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("A spread takes at least one measurement, got none.")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Installed versions of what a benchmark measures besides what every row names."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def append_row(file: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Add a row to a file of rows, with when and on what it was measured.

    Returns:
        The row as written.
    """
    written = {**row, "when": now(), "commit": commit(), "versions": versions(), "hardware": hardware()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(written) + "\n")
    return written


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a file, in the order they were measured; none where there is no file.

    Raises:
        ValueError: A line is no row; the message says which.
    """
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number} is no JSON row: {error}") from error
    return rows
