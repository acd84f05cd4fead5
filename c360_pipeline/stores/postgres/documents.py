"""Documents that control rows keep in versions."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def document_hash(document: Mapping[str, Any]) -> str:
    """What tells a document from others, in whatever order its names stand: sha256 in hex."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
