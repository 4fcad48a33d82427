"""docs/failure-codes.md and the code agree: codes, texts, details, and a test that exists for each row."""

import re
from pathlib import Path

import pytest

from nodeagent.model.protocol import StopReason
from nodeagent.rules.failures import CODES, task_ended

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "failure-codes.md").read_text()


def rows(columns: int, heading: str) -> list[list[str]]:
    """Return the rows of the table whose first heading this is."""
    table = PAGE[PAGE.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(row) for row in cells} == {columns}
    return cells


def test_every_code_has_its_row() -> None:
    """With category and message as they are given; no row is of a code that nobody gives."""
    shown = {row[0]: (row[1], row[2]) for row in rows(6, "code")}
    assert shown == {f"`{name}`": (f"`{code.category.value}`", code.message) for name, code in CODES.items()}


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_reason_of_a_stop_has_its_row(reason: StopReason) -> None:
    """With additional code, message, and who stopped it."""
    details = {item.name: item.value for item in task_ended(reason).details}
    (row,) = (row for row in rows(5, "additional code") if row[1] == f"`{reason.value}`")
    assert (row[0], row[2], row[3]) == (
        f"`{details['AdditionalErrorCode']}`",
        details["Message"],
        f"`{details['StoppedBy']}`",
    )


@pytest.mark.parametrize("proof", sorted({row[-1] for row in rows(6, "code") + rows(5, "additional code")}))
def test_the_test_that_a_row_names_exists(proof: str) -> None:
    """A code without a test that makes it happen has no row, and so no place in the table."""
    path, _, name = proof.strip("`").partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_detail_is_explained() -> None:
    """Each name that the sources give a detail is in the table of details, and no name that nobody gives."""
    explained = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(2, "detail"))))
    given = set()
    for package in ("rules", "transfer", "agent"):
        for path in (ROOT / "nodeagent" / package).glob("*.py"):
            source = path.read_text()
            if "rules.failures import" in source or path.name == "failures.py":
                given |= set(re.findall(r'\("([A-Z][A-Za-z]+)", (?!"[A-Z]\w*")', source))
    codes = set(CODES) | {row[0].strip("`") for row in rows(5, "additional code")}
    everywhere = "".join(path.read_text() for path in (ROOT / "nodeagent").rglob("*.py"))
    assert given - codes - explained == set()
    assert {name for name in explained if f'"{name}"' not in everywhere} == {"File1"}


def test_nobody_else_makes_a_failure() -> None:
    """The table is the only place where a FailureInfo is made."""
    makers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nodeagent").rglob("*.py")
        if re.search(r"(?<!class )\bFailureInfo\(", path.read_text())
    ]
    assert makers == ["nodeagent/rules/failures.py"]
