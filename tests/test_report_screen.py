"""What a person sees while something takes long."""

from io import StringIO

from rich.console import Console

from contrastive.report.screen import Told


def drawn(*, is_terminal: bool) -> str:
    out = StringIO()
    with Told(Console(file=out, force_terminal=is_terminal, width=80)) as told:
        told("training images", 3, 10)
        told.bar.refresh()
        told("validation images", 1, 4)
        told.bar.refresh()
    return out.getvalue()


def test_one_bar_at_a_time_says_what_is_being_done_and_how_far_it_is() -> None:
    shown = drawn(is_terminal=True)
    assert "3/10" in shown
    assert "1/4" in shown
    assert shown.rindex("training images") < shown.rindex("validation images")


def test_a_file_gets_no_bar() -> None:
    assert drawn(is_terminal=False).strip() == ""
