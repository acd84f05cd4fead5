import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def build_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_page_says_what_the_code_says(build_reference: ModuleType) -> None:
    assert (DOCS / "reference.md").read_text() == build_reference.reference(), "run `make docs`"


def test_the_schema_of_events_says_what_the_code_says(build_reference: ModuleType) -> None:
    text = (DOCS / "event.schema.json").read_text()
    assert text == build_reference.schema(), "run `make docs`"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
