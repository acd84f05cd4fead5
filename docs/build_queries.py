"""Writes docs/queries.md and its pictures from the queries and their golden answers over the sample: `make docs`.

A test holds the golden answers to what a graph of the sample answers, and another the page to the golden answers.
"""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from c360_pipeline.queries import Query, all_queries

PAGE = Path(__file__).parent / "queries.md"
PICTURES = Path(__file__).parent / "queries"
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "queries.json"
ROWS_SHOWN, BARS_SHOWN = 10, 24
COLOUR = "#4c72b0"


def cell(value: Any) -> str:
    """A value in a Markdown table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return text.replace("|", "\\|")


def section(query: Query, rows: list[dict[str, Any]]) -> str:
    """A question, its answer and its statement."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([cell(v) for v in row.values()] for row in rows[:ROWS_SHOWN])]
    answer = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    more = f"\n\nThe first {ROWS_SHOWN} of {len(rows)} rows." if len(rows) > ROWS_SHOWN else ""
    picture = f"\n\n![{query.question}](queries/{query.name}.svg)" if query.chart else ""
    settings = "".join(f"\n- `--set {name}=…`: {text}" for name, text in query.parameters.items())
    return (
        f"## {query.question}\n\n`c360 query {query.name.replace('_', '-')}`: {query.columns}.\n{settings}\n\n{answer}"
        f"{more}{picture}\n\n```cypher\n{query.statement}```"
    ).replace("\n\n\n", "\n\n")


def bars(query: Query, rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """What the picture of a query shows."""
    column, amount = query.chart or ("", "")
    if amount == "count":
        return [(str(name), float(n)) for name, n in Counter(row[column] for row in rows).most_common()]
    return [(str(row[column]), float(row[amount] or 0)) for row in rows[:BARS_SHOWN]]


def picture(query: Query, rows: list[dict[str, Any]]) -> str:
    """The answer as horizontal bars, as SVG text that is the same for the same answer."""
    shown = bars(query, rows)
    mpl.rcParams["svg.hashsalt"] = query.name
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7, 0.6 + 0.25 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([name for name, _ in shown], [value for _, value in shown], color=COLOUR)
    axes.invert_yaxis()
    _, amount = query.chart or ("", "")
    axes.set_xlabel("rows" if amount == "count" else amount.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def page(golden: dict[str, list[dict[str, Any]]]) -> str:
    """The page."""
    sections = [section(query, golden[name]) for name, query in all_queries().items()]
    intro = (
        "# Questions and answers\n\n"
        "What `c360 query` answers, here over the sample that `c360 seed` and `c360 generate` make, with 2025-11-03 "
        "as the present. `c360 query --list` shows the names, `--show` a statement, `--tenant` says whose customers, "
        "`--json` prints a document. Made by `make docs` from golden answers that a test holds to the graph."
    )
    return "\n\n".join([intro, *sections]) + "\n"


def main() -> None:
    """Write page and pictures."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    PAGE.write_text(page(golden), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, query in all_queries().items():
        if query.chart:
            (PICTURES / f"{name}.svg").write_text(picture(query, golden[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
