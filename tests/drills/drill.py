"""A drill: what users are promised, and how often it was kept."""

from dataclasses import dataclass, field

import pytest

promise = pytest.mark.promise  # @promise("what a user is promised, in plain words")


@dataclass
class Drill:
    """What one test tried of a promise, or all of a function's parametrised tests: a row of the table.

    Attributes:
        name: The test's.
        promise: What is promised.
        trials: How often it was tried.
        lost: How often it was not kept.
        seconds: What that took.
        notes: Of the lost ones.
    """

    name: str
    promise: str
    trials: int = 0
    lost: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def trial(self, *, lost: bool, note: str = "") -> None:
        """Count a trial.

        Args:
            lost: Whether the promise was broken.
            note: What was tried and what was found instead, for a lost one.
        """
        self.trials += 1
        if lost:
            self.lost += 1
            self.notes.append(note or f"trial {self.trials}")

    def add(self, other: "Drill") -> None:
        """Count another one's trials too."""
        self.trials += other.trials
        self.lost += other.lost
        self.seconds += other.seconds
        self.notes += other.notes
