"""The page of operations is what the table of declarations says."""

from distgrad.autograd.declare import table
from distgrad.testing import op_table


def test_the_page_is_up_to_date():
    text = op_table.PATH.read_text()
    assert text == op_table.generate(), "run: python -m distgrad.testing.op_table"


def test_every_operation_has_a_row():
    text = op_table.generate()
    assert [name for name in table if f"| `{name}` |" not in text] == []
    assert (
        "| `mul` | elementwise | " in text
        and " | input, other | rules | rules | yes | stand-in |" in text
    )
