"""Ids in paths: whatever an id holds, its route is found."""

import pytest
from starlette.routing import compile_path

from c360_pipeline.serving.paths import know_texts


@pytest.mark.parametrize("text", ["a", "a/b", "a\nb", "a\n", "\r\n/x", "..", "é🙂"])
def test_an_id_is_found_with_slashes_and_line_ends(text: str) -> None:
    know_texts()
    regex, path_format, converters = compile_path("/customers/{customer_id:text}/history")
    found = regex.match(f"/customers/{text}/history")
    assert found is not None
    assert converters["customer_id"].convert(found["customer_id"]) == text
    assert path_format == "/customers/{customer_id}/history"
