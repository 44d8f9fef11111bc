"""The reason codes, and the table of them that a person reads."""

import re
from pathlib import Path

from config.reasons import ReasonCode

SAFETY = Path(__file__).parents[2] / "docs" / "safety.md"


def test_every_reason_code_has_its_row_in_the_table_of_the_docs():
    table = SAFETY.read_text(encoding="utf-8").split("## All reason codes")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([A-Z0-9_]+) \| ([^|]+?) \|", table, re.M))
    assert rows == {str(code): code.meaning for code in ReasonCode}


def test_every_reason_says_what_the_site_can_do():
    assert all(code.meaning and code.advice.endswith(".") for code in ReasonCode)
