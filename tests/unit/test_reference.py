import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build_reference() -> ModuleType:
    return script("build_reference")


def test_the_reference_page_says_what_the_code_says(build_reference: ModuleType) -> None:
    assert (DOCS / "reference.md").read_text() == build_reference.reference(), "run `make docs`"


def test_the_schema_of_events_says_what_the_code_says(build_reference: ModuleType) -> None:
    text = (DOCS / "event.schema.json").read_text()
    assert text == build_reference.schema(), "run `make docs`"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_the_page_of_queries_shows_the_golden_answers() -> None:
    build_queries = script("build_queries")
    golden = json.loads(build_queries.GOLDEN.read_text(encoding="utf-8"))
    assert build_queries.PAGE.read_text(encoding="utf-8") == build_queries.page(golden), "run `make docs`"
    pictures = {query.name for query in build_queries.all_queries().values() if query.chart}
    assert {file.stem for file in build_queries.PICTURES.iterdir()} == pictures


def test_the_page_of_licences_names_every_package_of_the_lock_file_and_none_forbids_its_use() -> None:
    build_licences = script("build_licences")
    page = (DOCS / "licences.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count("|") == 4]
    listed = {(row[0].removeprefix("| "), row[1]): row[2].removesuffix(" |") for row in rows}
    assert [one for one in build_licences.pinned() if one not in listed] == [], "run `make docs`"
    said = {name: listed[name, version] for name, version in build_licences.pinned()}
    assert [name for name, licence in said.items() if re.search(r"(?<!L)GPL|Affero|not said", licence)] == []
