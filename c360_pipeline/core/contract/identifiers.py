"""One idea of the same identifier: its normal form, and which values name nobody.

Stitching, suppression and erasure compare identifiers by this form; events keep what was sent.
"""

import hashlib
from collections.abc import Iterable

import polars as pl

NORMAL_FORM = 2
"""Counts up when the form of some value changes: journeys are found again then."""
NOBODY = (
    "null", "none", "nil", "nan", "undefined", "unknown", "anonymous", "anon", "anonymoususer", "anonymousvisitor",
    "na", "true", "false", "objectobject", "notset", "unset", "notavailable", "notapplicable", "notprovided",
    "notfound", "notauthenticated", "unauthenticated", "notloggedin", "notsignedin", "loggedout", "loggedoutuser",
    "signedout", "guest", "guestuser", "guestcheckout", "visitor", "unknownuser", "unknownvisitor", "unknowndevice",
    "nouser", "nouserid", "nobody", "noname", "noid", "novalue", "empty", "blank", "missing", "invalid",
    "unassigned", "unspecified", "unidentified", "optout", "optedout", "redacted", "deleted", "masked", "default",
    "error",
)  # fmt: skip
"""What producers send when they know no value, without what is neither letter nor digit: `(not set)` is `notset`."""
NO_NUMBER = ("-1",)
HASHED_NOBODY = ("", " ", "null", "none", "nil", "nan", "undefined", "unknown", "anonymous", "n/a", "0", "-1", "guest",
                 "(not set)")  # fmt: skip
"""What they hash when they know none: the digest of an empty email is the classic key of everybody."""
FILLER = r"^(?:0+|f{8,}|x{2,})$"
"""Advertising ids of those who opted out, and templates that were never filled in."""
_EMAIL = r"^[^@\s]+@[^@\s]+\.[^@\s.]+$"


def _digests(values: Iterable[str]) -> Iterable[str]:
    for value in values:
        for spelling in dict.fromkeys((value, value.upper(), value.capitalize())):
            for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
                yield digest(spelling.encode(), usedforsecurity=False).hexdigest()


DIGESTS_OF_NOBODY = tuple(dict.fromkeys(_digests(HASHED_NOBODY)))


def normal_form(value: pl.Expr) -> pl.Expr:
    """NFKC without surrounding blanks and invisible characters; an e-mail address in small letters, without `mailto:`.

    A whole number has no zeros behind a point. Two values with one form are one identifier.
    """
    text = value.str.normalize("NFKC").str.replace_all(r"\p{Cf}", "").str.strip_chars()
    text = text.str.replace(r"^(-?[1-9]\d*)\.0+$", "$1")
    has_at = text.str.contains("@", literal=True)
    address = text.str.replace(r"^(?i:mailto):\s*", "")
    return pl.when(has_at & address.str.contains(_EMAIL)).then(address.str.to_lowercase()).otherwise(text)


def names_nobody(normal: pl.Expr, more: Iterable[str] = ()) -> pl.Expr:
    """Whether values in their normal form name nobody.

    Args:
        normal: the values.
        more: further words, as `word_of` makes them.
    """
    small = normal.str.to_lowercase()
    word = _word(small)
    words = [*NOBODY, *more]
    return word.is_in(["", *words]) | small.is_in([*NO_NUMBER, *DIGESTS_OF_NOBODY]) | word.str.contains(FILLER)


def _word(small: pl.Expr) -> pl.Expr:
    return small.str.replace_all(r"[^\p{L}\p{N}]", "")


def word_of(value: str) -> str:
    """What a value is compared by with those that name nobody: its letters and digits, small."""
    return str(pl.select(_word(normal_form(pl.lit(value)).str.to_lowercase())).item())


def normal_text(value: str) -> str:
    """The normal form of one value."""
    return str(pl.select(normal_form(pl.lit(value))).item())
