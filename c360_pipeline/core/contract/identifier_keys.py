"""Secrets that identifiers are hashed with, so that nobody finds a value by trying who has hashes alone.

A secret covers what the one before it made: version 2 is the HMAC of version 1. So a hash is brought to a newer version
without the value that it stands for, which an erasure may have taken, and a secret that leaked is of no use once
another covers it (docs/adr/0061).
"""

from dataclasses import dataclass, field

import polars as pl
import polars_hash  # noqa: F401 - registers the `chash` expressions
from pydantic import SecretStr

from c360_pipeline.core.arrays.row_hashes import hash128
from c360_pipeline.core.contract.identifier_secrets import fingerprint

WORD_HEX = 16
"""Hexadecimal digits of 64 bits."""


@dataclass(frozen=True)
class IdentifierKeys:
    """The secrets of an installation, the oldest first; none of them where hashes have no secret.

    Attributes:
        secrets: of versions 1, 2, 3.
        covers_hashes: whether version 1 covers the xxh3 hashes of an archive that began without secrets, rather than
            the values.
    """

    secrets: tuple[SecretStr, ...] = field(default=(), repr=False)
    covers_hashes: bool = False

    @property
    def version(self) -> int:
        """Of the newest secret; 0 without any."""
        return len(self.secrets)

    @property
    def name(self) -> str:
        """Version and fingerprint, as logs of stitching note them; `0` without a secret."""
        return f"{self.version}:{fingerprint(self.secrets[-1])}" if self.secrets else "0"

    def hashed(self, text: pl.Expr) -> pl.Expr:
        """128 bits that stand for a text; the same in every process."""
        if not self.secrets or self.covers_hashes:
            return self.covered(hash128(text), 0)
        return self.covered(_hashed128(text, self.secrets[0]), 1)

    def covered(self, hashes: pl.Expr, since: int) -> pl.Expr:
        """128-bit hashes of a version, brought to the newest.

        Args:
            hashes: as 128 bits.
            since: the version that they are of.
        """
        for secret in self.secrets[since:]:
            hashes = _hashed128(hashes.cast(pl.String), secret)
        return hashes

    def covered_digests(self, digests: pl.Expr, since: int) -> pl.Expr:
        """Digests of 64 hexadecimal digits of a version, brought to the newest; version 0 is without a secret."""
        for secret in self.secrets[since:]:
            digests = _hmac(digests, secret)
        return digests


def _hmac(text: pl.Expr, secret: SecretStr) -> pl.Expr:
    """HMAC-SHA-256 in hexadecimal digits."""
    namespace = text.chash  # type: ignore[attr-defined]  # registered by polars_hash
    digest: pl.Expr = namespace.hmac_sha256(key=secret.get_secret_value())
    return digest


def _hashed128(text: pl.Expr, secret: SecretStr) -> pl.Expr:
    """The first 128 bits of the HMAC."""

    def halves(texts: pl.Series) -> pl.Series:
        # In steps: as one expression the digest, which is what costs, would be made for each half.
        digests = texts.to_frame("text").select(digest=_hmac(pl.col("text"), secret))
        words = digests.select(
            pl.col("digest").str.slice(start, WORD_HEX).str.to_integer(base=16, dtype=pl.UInt64).alias(name)
            for name, start in (("high", 0), ("low", WORD_HEX))
        )
        high, low = (pl.col(name).cast(pl.UInt128) for name in ("high", "low"))
        return words.select((high * pl.lit(1 << 64, dtype=pl.UInt128) + low).alias(texts.name)).to_series()

    return text.map_batches(halves, return_dtype=pl.UInt128, is_elementwise=True)
