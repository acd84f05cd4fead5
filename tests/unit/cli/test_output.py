"""What commands print."""

import io

from rich.table import Table

from c360_pipeline.cli.output import PlainConsole

HOSTILE = "x\x1b]0;title\x07\x1b[2J\r\x9bz\u202egnp.exe[bold]"


def test_no_value_steers_the_terminal() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=200)
    table = Table("a")
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    said = file.getvalue()
    assert not set(said) & set("\x1b\x07\r\x9b\u202e")
    assert "\\x1b]0;title" in said
    assert "[bold]" in said
