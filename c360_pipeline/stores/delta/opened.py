"""Versions of tables that were opened lately, for those who read: opening one is most of what a small read costs.

A version never changes, so it can be shared; what has to be asked is whether it is still the newest, and still of this
table: two requests for an entry of the log (docs/adr/0048).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import obstore
from deltalake import DeltaTable
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

KEPT_VERSIONS = 128
Mark = tuple[Any, ...]
"""What a store says of an entry of a log: another one of the same number has another."""
# Not of cachetools: the job in Flink reads, too, and has few packages.
_kept: OrderedDict[tuple[str, str, int | None], tuple[DeltaTable, Mark]] = OrderedDict()
_lock = threading.Lock()


class OpenedVersions:
    """What this process has opened below a root.

    Args:
        root: `s3://bucket/lake`, or a folder.
        options: of the object store, as delta-rs takes them.
    """

    def __init__(self, root: str, options: Mapping[str, str]) -> None:
        self._root = root.rstrip("/")
        # Two logins may see different things.
        self._login = "\n".join(f"{name}={value}" for name, value in sorted(options.items()))
        self._options = options
        self._store: S3Store | LocalStore | None = None

    def get(self, name: str, version: int | None, open_anew: Callable[[], DeltaTable | None]) -> DeltaTable | None:
        """A version of a table, None for the newest; opened anew where it is not known or not the newest any more."""
        key = (f"{self._root}/{name}", self._login, version)
        with _lock:
            kept = _kept.get(key)
        if kept is not None and self._is_current(name, kept, is_newest=version is None):
            return kept[0]
        table = open_anew()
        mark = self._mark(name, table.version()) if table is not None else None
        with _lock:
            if table is None or mark is None:
                _kept.pop(key, None)
            else:
                _kept[key] = (table, mark)
                _kept.move_to_end(key)
                while len(_kept) > KEPT_VERSIONS:
                    _kept.popitem(last=False)
        return table

    def _is_current(self, name: str, kept: tuple[DeltaTable, Mark], *, is_newest: bool) -> bool:
        table, mark = kept
        if is_newest and self._mark(name, table.version() + 1) is not None:
            return False
        return self._mark(name, table.version()) == mark

    def _mark(self, name: str, version: int) -> Mark | None:
        """What tells an entry of a log; None where there is none, or none any more."""
        try:
            found = obstore.head(self._opened_store(), f"{name}/_delta_log/{version:020}.json")
        except FileNotFoundError:
            return None
        return found["e_tag"], found["last_modified"], found["size"]

    def _opened_store(self) -> S3Store | LocalStore:
        if self._store is None and self._root.startswith("s3://"):
            login = {n.lower(): value for n, value in self._options.items() if n.upper().startswith("AWS_")}
            http = {"allow_http": login.pop("aws_allow_http", "") == "true"}
            config = cast("S3Config", {**login, "aws_virtual_hosted_style_request": False})
            self._store = S3Store.from_url(self._root, config=config, client_options=cast("ClientConfig", http))
        elif self._store is None:
            self._store = LocalStore(Path(self._root), mkdir=True)
        return self._store
