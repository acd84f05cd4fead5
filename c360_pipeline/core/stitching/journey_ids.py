"""The ids of journeys: UUIDs of the events that founded them, as text and as two words of 64 bits.

Source: docs/adr/0004 for the rule.
"""

import hashlib
import uuid
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from c360_pipeline.core.kernels import journeys as kernel

JOURNEY_NAMESPACE = uuid.UUID("5a0c7f0e-6a3b-5c0e-9f0a-3c360c360c36")
UUID_CHARACTERS = 36

Words = npt.NDArray[np.uint64]


def journey_id(tenant_id: str, founding_event_id: str) -> str:
    """uuid5 of tenant and founding event: the same in every run and on every machine."""
    return journey_ids([tenant_id], [founding_event_id])[0]


def journey_ids(tenants: Sequence[str], founding_event_ids: Sequence[str]) -> list[str]:
    """`journey_id` of many."""
    start = hashlib.sha1(JOURNEY_NAMESPACE.bytes, usedforsecurity=False)
    digests = bytearray()
    for tenant, event in zip(tenants, founding_event_ids, strict=True):
        digest = start.copy()
        digest.update(f"{len(tenant)}:{tenant}{event}".encode())
        digests += digest.digest()[:16]
    halves = np.frombuffer(bytes(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    # The version and the variant of a uuid5 are set for all at once: a UUID object costs more than SHA-1.
    high = (halves[:, 0] & ~np.uint64(0xF000)) | np.uint64(0x5000)
    low = (halves[:, 1] & np.uint64((1 << 62) - 1)) | np.uint64(1 << 63)
    return ids_of_words(high, low).to_list()


def id_words(ids: pl.Series) -> tuple[Words, Words]:
    """The upper and the lower word of each id, 0 for null.

    Raises:
        ValueError: one is not a UUID in lower case with hyphens.
    """
    text = ids.cast(pl.String).fill_null("")
    letters = np.frombuffer("".join(text.to_list()).encode(), np.uint8)
    ends = np.append(0, text.str.len_bytes().to_numpy()).astype(np.int64).cumsum()
    high, low, wrong = kernel.uuid_words(letters, ends, ids.is_not_null().to_numpy())
    if wrong >= 0:
        raise ValueError(f"{ids[int(wrong)]!r} is not the id of a journey")
    return high, low


def ids_of_words(high: Words, low: Words) -> pl.Series:
    """The ids of two words each."""
    letters = kernel.uuid_letters(high, low)
    ends = np.arange(len(high) + 1, dtype=np.int64) * UUID_CHARACTERS
    text = pa.LargeStringArray.from_buffers(len(high), pa.py_buffer(ends.data), pa.py_buffer(letters.data))
    return pl.Series("journey_id", text, dtype=pl.String)
