from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from c360_pipeline.stores.local.metrics import MAX_TENANTS, Figure, Metrics, by_tenant
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics, named


def test_figures_are_in_the_text_format_of_prometheus(tmp_path: Path) -> None:
    figures = [Figure("speed", "How fast.", 2.5), *by_tenant("size", "How large.", {"acme": 7, 'a"b': 1})]
    text = Metrics(tmp_path / "metrics").write("stage", figures).read_text()
    assert "# HELP c360_speed How fast.\n# TYPE c360_speed gauge\nc360_speed 2.5\n" in text
    assert 'c360_size{tenant="acme"} 7.0' in text
    assert 'c360_size{tenant="a\\"b"} 1.0' in text


def test_labels_do_not_grow_with_the_tenants() -> None:
    figures = by_tenant("size", "How large.", {f"t{n}": n for n in range(MAX_TENANTS + 50)})
    assert len(figures) == MAX_TENANTS + 1
    assert (figures[-1].labels, figures[-1].value) == ({"tenant": "other"}, 49)


def test_a_statement_that_fails_counts_and_its_name_holds_no_values() -> None:
    statistics = GraphStatistics(10)
    with pytest.raises(ValueError, match="no"), statistics.measured("MATCH (n)\n   RETURN n", lambda: 3):
        raise ValueError("no")
    with statistics.measured("RETURN 1", lambda: 1):
        pass
    assert (statistics.statements, statistics.failed, statistics.retries, statistics.most_in_use) == (2, 1, 2, 1)
    assert statistics.failures == {("ValueError", "MATCH (n) RETURN n"): 1}
    assert named("MATCH (n)\n   RETURN n") == "MATCH (n) RETURN n"
    assert len(named("x" * 100)) == 60


def test_totals_grow_from_run_to_run_and_an_idle_run_leaves_them(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)

    def run(landed: int, dead: int | None = None) -> None:
        lines = {"landed": landed, **({"dead": dead} if dead is not None else {})}
        totals = [Figure("lines", "Lines.", n, {"outcome": name}, is_total=True) for name, n in lines.items()]
        metrics.write("landing", [*totals, Figure("files", "Files of the last run.", landed)])

    for landed, dead in ((5, 1), (7, None), (0, 0)):
        run(landed, dead)
    samples = {
        (s.name, s.labels.get("outcome")): s.value for f in metrics.read() for s in f.samples if s.name != "c360_x"
    }
    assert (samples["c360_lines_total", "landed"], samples["c360_lines_total", "dead"]) == (12, 1)
    assert samples["c360_files", None] == 0


def test_runs_that_end_at_once_lose_nothing_of_a_total(tmp_path: Path) -> None:
    def run(_: int) -> None:
        Metrics(tmp_path).write("landing", [Figure("lines", "Lines.", 1, is_total=True)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(40)))
    (total,) = (s.value for f in Metrics(tmp_path).read() for s in f.samples if s.name == "c360_lines_total")
    assert total == 40
