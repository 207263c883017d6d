"""What ``import contrastive`` costs beside the libraries that it stands on.

    python -m benchmarks.import_time --pairs 15

Each import runs in a process of its own, the two kinds in turn, so that a machine that slows down slows both. Appends a
row to ``benchmarks/results/import_time.jsonl``.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, append_row, spread

BASELINE, OURS = "import pytorch_lightning, torchvision", "import contrastive"
ROOT = Path(__file__).resolve().parents[1]


def seconds(statement: str) -> float:
    """How long a statement takes in a fresh process, the interpreter's own start not counted."""
    script = f"import time; start = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


def measure(pairs: int) -> dict[str, Any]:
    """Time both imports ``pairs`` times, in turn, after one of each to warm the disk's cache."""
    times: dict[str, list[float]] = {BASELINE: [], OURS: []}
    for statement in times:
        seconds(statement)
    for _ in range(pairs):
        for statement, measured in times.items():
            measured.append(seconds(statement))
    ratios = [ours / baseline for baseline, ours in zip(times[BASELINE], times[OURS], strict=True)]
    return {"benchmark": "import_time", "seconds": times, "ratios": ratios}


def main(words: list[str] | None = None) -> int:
    """Measure, print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="how often each import is timed")
    parser.add_argument("--output", type=Path, default=RESULTS / "import_time.jsonl", help="file of rows to append to")
    options = parser.parse_args(words)
    row = append_row(options.output, measure(options.pairs))
    for statement, measured in row["seconds"].items():
        print(f"{statement}: {spread(measured)} s")
    print(f"ratio of neighbours: {spread(row['ratios'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
