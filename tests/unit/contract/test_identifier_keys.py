"""Secrets that identifiers are hashed with."""

import hashlib
import hmac
from dataclasses import replace

import polars as pl
import pytest
from pydantic import SecretStr

from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.contract.identifier_secrets import chain, fingerprint, parsed_secrets
from c360_pipeline.core.stitching.keys import UNKEYED, value_hash
from c360_pipeline.core.stitching.rotation import rotated_names, rotated_rows
from c360_pipeline.errors import ConfigError

FIRST, SECOND = SecretStr("ab" * 32), SecretStr("cd" * 32)
ONE, TWO = IdentifierKeys((FIRST,)), IdentifierKeys((FIRST, SECOND))
TEXT = "4:acme4:user3:ana"


def by_the_standard(secret: SecretStr, text: str) -> int:
    digest = hmac.new(secret.get_secret_value().encode(), text.encode(), hashlib.sha256).hexdigest()
    return int(digest[:32], 16)


def hashed(keys: IdentifierKeys, text: str = TEXT) -> int:
    return int(pl.select(keys.hashed(pl.lit(pl.Series([text])))).item())


def test_a_key_is_the_hmac_of_what_it_stands_for_and_a_second_secret_covers_it() -> None:
    assert hashed(ONE) == by_the_standard(FIRST, TEXT)
    assert hashed(TWO) == by_the_standard(SECOND, str(by_the_standard(FIRST, TEXT)))
    assert value_hash("acme", "user", " ana ", ONE) == str(hashed(ONE))


def test_hashes_without_a_secret_are_covered_by_the_first_one() -> None:
    bare, covered = hashed(UNKEYED), replace(ONE, covers_hashes=True)
    assert hashed(covered) == by_the_standard(FIRST, str(bare)) != hashed(ONE)
    old = pl.DataFrame({"key_hash": [str(bare), None]})
    assert rotated_rows(old, covered, 0)["key_hash"].to_list() == [str(hashed(covered)), None]


def test_a_rotation_leads_where_the_value_leads() -> None:
    named = f"user:{hashed(ONE)}"
    rows = pl.DataFrame(
        {"key_hash": [str(hashed(ONE))], "cause": [f"{named} was blocked"], "unique_keys": [[named, ""]]}
    )
    new = rotated_rows(rows, TWO, 1)
    assert new.row(0) == (str(hashed(TWO)), f"user:{hashed(TWO)} was blocked", [f"user:{hashed(TWO)}", ""])
    assert rotated_names(["events changed", "order:12"], TWO, 1) == {}


def test_a_digest_of_a_person_is_covered_in_full() -> None:
    digest = hashlib.sha256(b"4:acmeana").hexdigest()
    found = pl.select(TWO.covered_digests(pl.lit(pl.Series([digest])), 0)).item()
    once = hmac.new(b"ab" * 32, digest.encode(), hashlib.sha256).hexdigest()
    assert found == hmac.new(b"cd" * 32, once.encode(), hashlib.sha256).hexdigest()


def test_no_text_of_ours_shows_a_secret() -> None:
    shown = [repr(TWO), str(TWO), TWO.name, str(TWO.hashed(pl.col("x"))), fingerprint(FIRST)]
    shown += [pl.LazyFrame({"x": ["a"]}).select(TWO.hashed(pl.col("x"))).explain()]
    for secret in (FIRST, SECOND):
        assert not [one for one in shown if secret.get_secret_value() in one]


def test_secrets_are_read_by_version() -> None:
    text = f"# of today\n2:{SECOND.get_secret_value()}\n 1:{FIRST.get_secret_value().upper()},  # the first"
    assert parsed_secrets(text, "x") == {1: FIRST, 2: SECOND}
    assert parsed_secrets("", "x") == {}


@pytest.mark.parametrize(
    "text", ["ab" * 32, f"0:{'ab' * 32}", f"x:{'ab' * 32}", "1:short", f"1:{'ab' * 32} 1:{'cd' * 32}"]
)
def test_what_is_no_secret_is_named_by_its_place_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="where they are") as caught:
        parsed_secrets(text, "where they are")
    assert "ab" * 32 not in str(caught.value)
    assert "cd" * 32 not in str(caught.value)


def test_a_secret_that_is_missing_or_another_is_said_by_version() -> None:
    named = {1: fingerprint(FIRST), 2: fingerprint(SECOND)}
    assert chain({1: FIRST, 2: SECOND, 3: FIRST}, named, lambda: "the file") == (FIRST, SECOND)
    for known in ({1: FIRST}, {1: FIRST, 2: FIRST}):
        with pytest.raises(ConfigError, match=rf"version 2 \(fingerprint {fingerprint(SECOND)}\).*the file"):
            chain(known, named, lambda: "the file")
