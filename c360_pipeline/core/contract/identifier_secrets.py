"""The text that secrets of identifiers are kept in, and what tells one from another."""

import hashlib
import re
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from c360_pipeline.errors import ConfigError

SECRET = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
COMMENT = re.compile(r"#.*")


def fingerprint(secret: SecretStr) -> str:
    """What tells two secrets apart, and nothing of them: they are 256 random bits."""
    return hashlib.sha256(f"identifier key {secret.get_secret_value()}".encode()).hexdigest()[:16]


def parsed_secrets(text: str, where: str) -> dict[int, SecretStr]:
    """Secrets by version, as a file or a variable has them: `1:64 hexadecimal digits`, by lines, blanks or commas.

    What follows `#` in a line is a remark.

    Raises:
        ConfigError: it is no such text; what is there is not told.
    """
    found: dict[int, SecretStr] = {}
    for number, entry in enumerate(COMMENT.sub("", text).replace(",", " ").split(), start=1):
        version, _, secret = entry.partition(":")
        if not (version.isascii() and version.isdigit() and int(version) and SECRET.fullmatch(secret)):
            raise ConfigError(
                f"{where}, entry {number}: VERSION:SECRET is right, with 64 hexadecimal digits for a secret, "
                "as `c360 keys new` prints it."
            )
        if int(version) in found:
            raise ConfigError(f"{where} names version {version} twice: leave the one whose fingerprint is known.")
        found[int(version)] = SecretStr(secret.lower())
    return found


def chain(
    known: Mapping[int, SecretStr], fingerprints: Mapping[int, str], where: Callable[[], str]
) -> tuple[SecretStr, ...]:
    """The secrets of all versions, each known to be the right one.

    Args:
        known: by version, those that this machine has.
        fingerprints: by version, of those that hashes were made with.
        where: names where they come from, for the error.

    Raises:
        ConfigError: one is missing, or is another.
    """
    wrong = [
        version for version, said in fingerprints.items() if version not in known or fingerprint(known[version]) != said
    ]
    if wrong:
        named = ", ".join(f"{version} (fingerprint {fingerprints[version]})" for version in sorted(wrong))
        raise ConfigError(
            f"Identifiers are hashed with secrets that this machine does not have: version {named}. Copy them from "
            f"where the product ran before, or from the backup, to {where()} (docs/security.md)."
        )
    return tuple(known[version] for version in sorted(fingerprints))
