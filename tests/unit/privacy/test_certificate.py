"""A certificate is shown to people: it names kinds of things, and nobody."""

from c360_pipeline.stages.privacy.certificate import kinds_that_differ


def test_what_differs_is_named_by_its_kind_alone() -> None:
    values = {"key": "acme ann@example.org", "difference": "email: ann@example.org", "label": "User"}
    found = [
        {"entity": "User", "kind": "altered", "tenant_id": "acme", **values},
        {"entity": "User", "kind": "altered", "tenant_id": "acme", **values},
        {"entity": "PURCHASED", "kind": "missing", "tenant_id": "acme", **values},
        {"entity": "User", "kind": "extra", "tenant_id": "globex", **values},
    ]
    counted = kinds_that_differ(found, {"acme"})
    assert dict(counted) == {"User altered": 2, "PURCHASED missing": 1}
    assert "ann" not in str(counted)
