"""Pictures for the UI: figures as images in metadata."""

import base64
import io
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from c360_pipeline.core.features.hits import ALL_SOURCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"landed": "#2a7f62", "duplicates": "#b8b8b8", "suppressed": "#6c757d", "dead": "#c44536"}
DAYS_SHOWN = 90
LONGEST_LABEL = 32
FORESEEN = ("order (AUC)", "all purchases, of those that came")
"""Measures of `CUSTOMER_MODELS` that are drawn; 1 is right of both."""


def lines_per_day(files: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """What became of the lines of each landing date, stacked; the last 90 dates that had any.

    Args:
        files: rows of `LANDING_FILES`.
    """
    from matplotlib.figure import Figure  # takes half a second to import, and only a run needs it

    columns = list(COLOURS)
    days = files.group_by("landing_date").agg(pl.col(columns).sum()).sort("landing_date").tail(DAYS_SHOWN)
    if days.is_empty():
        return dg.MetadataValue.md("nothing landed yet")
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    labels, bottom = days["landing_date"].dt.to_string().to_list(), pl.zeros(days.height, pl.Int64, eager=True)
    for column in columns:
        axes.bar(labels, days[column].to_list(), bottom=bottom.to_list(), color=COLOURS[column], label=column)
        bottom = bottom + days[column]
    axes.set_ylabel("lines")
    axes.tick_params(axis="x", rotation=60, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _image(figure, "lines per landing date")


def journey_sizes(sizes: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """How many journeys have so many events, both by powers of two.

    Args:
        sizes: event_count of each journey.
    """
    from matplotlib.figure import Figure

    power = pl.col("event_count").log(2).floor().cast(pl.Int64)
    counts = sizes.select(power=power).group_by("power").len().sort("power")
    labels = [f"{2**p:,}" if p == 0 else f"{2**p:,}-{2 ** (p + 1) - 1:,}" for p in counts["power"]]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(labels, counts["len"].to_list(), color="#2a7f62")
    axes.bar_label(bars, labels=[f"{number:,}" for number in counts["len"]], fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("events of a journey")
    axes.set_ylabel("journeys")
    axes.tick_params(axis="x", rotation=30, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _image(figure, "sizes of journeys")


def community_sizes(sizes: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """The communities of each tenant by size, largest first.

    Args:
        sizes: tenant_id, community, community_size.
    """
    from matplotlib.figure import Figure

    if sizes.is_empty():
        return dg.MetadataValue.md("no communities yet")
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for (tenant,), part in sizes.group_by("tenant_id", maintain_order=True):
        users = part["community_size"].sort(descending=True).to_list()
        axes.plot(range(1, len(users) + 1), users, marker="o", markersize=3, label=_label(str(tenant)))
    axes.set_yscale("log")
    axes.set_xlabel("community, largest first")
    axes.set_ylabel("users")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, fontsize=8)
    return _image(figure, "sizes of communities")


def differences_by_day(buckets: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Tenants against days: green where graph and archive are equal, red by how many kinds differ; the last 90 days.

    Args:
        buckets: rows of `RECONCILIATIONS` of one run; the last column is of rows without a day.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    differs = pl.col("expected_digest") != pl.col("found_digest")
    cells = buckets.group_by("tenant_id", "day").agg(differs.sum().alias("kinds"))
    if cells.is_empty():
        return dg.MetadataValue.md("nothing to compare yet")
    days = [*cells["day"].drop_nulls().unique().sort().tail(DAYS_SHOWN).to_list(), None]
    tenants = cells["tenant_id"].unique().sort().to_list()
    counts = {(tenant, day): kinds for tenant, day, kinds in cells.select("tenant_id", "day", "kinds").iter_rows()}
    table = [[counts.get((tenant, day), float("nan")) for day in days] for tenant in tenants]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(tenants)), layout="constrained")
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("drift", ["#2a7f62", "#f2c14e", "#c44536"])
    axes.imshow(table, aspect="auto", cmap=colours, vmin=0, vmax=3)
    step = max(len(days) // 15, 1)
    shown = [n for n in range(len(days)) if n % step == 0 or days[n] is None]
    axes.set_xticks(shown, [str(days[n] or "no day") for n in shown], rotation=60, fontsize=8)
    axes.set_yticks(range(len(tenants)), [_label(tenant) if tenant else "no tenant" for tenant in tenants])
    axes.set_title("kinds that differ: none (green) to three or more (red)", fontsize=9)
    return _image(figure, "graph against archive, by tenant and day")


def _label(text: str) -> str:
    """A name of anybody's as a label: short, without formulas, of characters that the font has.

    Between two dollar signs matplotlib reads a formula, and fails on what is none; what begins with an underscore it
    leaves out of legends.
    """
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    shown = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)
    short = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    return f" {short}".replace("$", r"\$")


def foreseen(models: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """How well models foresaw the newest past, and their rules, by tenant.

    Args:
        models: rows of `CUSTOMER_MODELS`.
    """
    from matplotlib.figure import Figure

    shown = models.filter(pl.col("measure").is_in(FORESEEN))
    if shown.is_empty():
        return dg.MetadataValue.md("no tenant has enough history for a model")
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, measure in zip(panels, FORESEEN, strict=True):
        rows = shown.filter(pl.col("measure") == measure).sort("tenant_id").head(20)
        places = list(range(rows.height))
        axes.plot(places, rows["value"].to_list(), "o", color="#2a7f62", label="model")
        axes.plot(places, rows["baseline"].to_list(), "x", color="#6c757d", label="rule")
        axes.axhline(1, color="#b8b8b8", linewidth=1)
        axes.set_xticks(places, [tenant[:LONGEST_LABEL] for tenant in rows["tenant_id"]], rotation=60, fontsize=8)
        axes.set_title(measure, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _image(figure, "how well customers were foreseen")


def hit_rates(hits: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """The share of customers who viewed or bought what was recommended, by day, of each version the mean of tenants.

    Args:
        hits: rows of `RECOMMENDATION_HITS`.
    """
    from matplotlib.figure import Figure

    shown = hits.filter((pl.col("source") == ALL_SOURCES) & pl.col("is_complete"))
    if shown.is_empty():
        return dg.MetadataValue.md("no day is over on which the API recommended anything")
    sums = shown.group_by("version", "day").agg(pl.col("customers", "customers_with_hit").sum()).sort("version", "day")
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for (version,), rows in sums.partition_by("version", as_dict=True, maintain_order=True).items():
        rate = rows["customers_with_hit"] / rows["customers"]
        axes.plot(rows["day"].to_list(), rate.to_list(), "o-", label=str(version)[:LONGEST_LABEL])
    axes.set_ylim(0)
    axes.set_ylabel("customers with a hit")
    axes.tick_params(axis="x", rotation=60, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _image(figure, "hit rate by day")


def _image(figure: "Figure", name: str) -> dg.MarkdownMetadataValue:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    encoded = base64.b64encode(image.getvalue()).decode()
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{encoded})")
