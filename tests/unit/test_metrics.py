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
    assert named("MATCH (n)\n   RETURN n") == "MATCH (n) RETURN n"
    assert len(named("x" * 100)) == 60
