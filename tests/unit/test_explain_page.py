"""The page about explanations names every code that there is, and no other."""

import re
from pathlib import Path

from nodeagent.rules.explain import Code

PAGE = Path(__file__).parents[2] / "docs" / "explain.md"


def test_every_code_of_a_reason_is_in_a_table_of_the_page() -> None:
    """A code that is added, or goes, must change docs/explain.md too."""
    rows = re.findall(r"^\| (`[A-Z].*?) \|", PAGE.read_text(), re.MULTILINE)
    told = {code for row in rows for code in re.findall(r"`([A-Z]\w+)`", row)}
    assert told | {Code.MORE.value} == {code.value for code in Code}
