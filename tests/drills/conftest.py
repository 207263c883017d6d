"""The fixture that counts a drill's trials, and the table at the session's end."""

import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.drills import page
from tests.drills.drill import Drill

if TYPE_CHECKING:
    from tests.drills.runs import References

PROPERTY = "drill"  # of a test's report, which also comes from the processes of pytest-xdist


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="print the table of drills, and write it there")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("reliability", None) is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rows(config.getoption("reliability")))


class Rows:
    """The table's rows, of what the tests report.

    Args:
        file: Where to write it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Drill] = {}  # by the test's file and function

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, found in report.user_properties if report.when == "call" else ():
            if name == PROPERTY:
                of_test = Drill(**found)
                row = self.rows.setdefault(report.nodeid.partition("[")[0], Drill(of_test.name, of_test.promise))
                row.add(of_test)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Print and write the table, unless drills were left out because somebody stopped them."""
        rows = [self.rows[name] for name in sorted(self.rows)]
        if rows and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            page.show(rows)
            page.write(rows, self.file)


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Drill:
    """Counts the trials of the promise that the test is decorated with; the test fails if one is lost, or none made."""
    marker = request.node.get_closest_marker("promise")
    if marker is None:
        pytest.fail(f'{request.node.name} makes no promise: decorate it with @promise("what is promised").')
    return Drill(request.node.originalname.removeprefix("test_").replace("_", " "), *marker.args)


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> "References":
    """Trainings that nothing happens to."""
    from tests.drills.runs import References  # imports torch, which other drills need not wait for

    return References(tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the trainee's option ``files``."""
    from tests.drills.trainee import draw

    return draw(tmp_path_factory.mktemp("images"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Judge the drill by its trials; one that breaks off has lost."""
    drill = pyfuncitem.funcargs.get("drill")
    if not isinstance(drill, Drill):
        return (yield)
    started = time.perf_counter()
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except BaseException as error:
        drill.trial(lost=True, note=f"the drill broke off: {error}")
        raise
    finally:
        drill.seconds = time.perf_counter() - started
        pyfuncitem.user_properties.append((PROPERTY, asdict(drill)))
    if drill.lost:
        notes = "\n".join(drill.notes)
        pytest.fail(f"{drill.lost} of {drill.trials} trials lost: {drill.promise}\n{notes}", pytrace=False)
    if not drill.trials:
        pytest.fail(f"No trial was made of: {drill.promise}", pytrace=False)
    return result
