"""The fixture that counts a drill's trials, and the table at the session's end."""

import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.drills import page
from tests.drills.drill import Drill

if TYPE_CHECKING:
    from tests.drills.runs import References

DRILLS = pytest.StashKey[dict[str, Drill]]()  # by the test's file and function


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="print the table of drills, and write it there")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Every drill has its row, also one that is never reached."""
    rows = session.config.stash.setdefault(DRILLS, {})
    for item in session.items:
        marker = item.get_closest_marker("promise")
        if marker is not None and isinstance(item, pytest.Function):
            name = item.originalname.removeprefix("test_").replace("_", " ")
            rows.setdefault(_row(item), Drill(name, *marker.args))


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Drill:
    """Counts the trials of the promise that the test is decorated with; the test fails if one is lost, or none made."""
    row = request.config.stash[DRILLS].get(_row(request.node))
    if row is None:
        pytest.fail(f'{request.node.name} makes no promise: decorate it with @promise("what is promised").')
    return row


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
    trials, lost, started = drill.trials, drill.lost, time.perf_counter()
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except BaseException as error:
        drill.trial(lost=True, note=f"the drill broke off: {error}")
        raise
    finally:
        drill.seconds += time.perf_counter() - started
    if drill.lost > lost:
        notes = "\n".join(drill.notes[lost:])
        pytest.fail(
            f"{drill.lost - lost} of {drill.trials - trials} trials lost: {drill.promise}\n{notes}", pytrace=False
        )
    if drill.trials == trials:
        pytest.fail(f"No trial was made of: {drill.promise}", pytrace=False)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Print and write the table, if asked to."""
    file, rows = session.config.getoption("reliability", None), session.config.stash.get(DRILLS, {})
    if file is not None and rows:
        page.show(list(rows.values()))
        page.write(list(rows.values()), file)


def _row(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]
