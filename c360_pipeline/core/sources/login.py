"""A login for the bucket of a source; apart, for settings need it and are read before anything else."""

from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True)
class BucketLogin:
    """A login for a bucket that is not the product's own.

    Attributes:
        access_key_id: of the login.
        secret_access_key: its secret.
        region: of the bucket.
        endpoint_url: the server; None for the one of the product's own bucket.
    """

    access_key_id: str
    secret_access_key: SecretStr
    region: str | None = None
    endpoint_url: str | None = None
