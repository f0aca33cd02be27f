"""The table of faults names tests that exist, and a row without one gives its reason."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = [line.split(" | ") for line in (TESTS / "training" / "README.md").read_text().splitlines()[5:] if line]
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_every_named_test_exists() -> None:
    named = [match for row in ROWS[1:] for match in NAMED.findall(row[-1])]
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_fault_has_a_test_or_a_reason() -> None:
    without = [row[0].strip("| ") for row in ROWS[1:] if not NAMED.search(row[-1])]
    assert [fault.partition(":")[0] for fault in without] == ["Asynchronous save", "Prompts"]
