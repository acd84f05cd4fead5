"""The client of `bench_serving.py`: `serving_client.py KIND PORT KEY SECONDS USERS`; prints what it saw as JSON."""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

TENANT = "bench"
CONNECTIONS = {"alone": 1, "new": 1, "customer": 4, "page": 4}
"""That ask without a pause: a program has eight, people with a browser are fewer."""
ASKED_AGAIN = 200
"""Users that are asked for again and again, each having been asked for once."""


class Client:
    """Connections, each of which asks one request after the other.

    Args:
        kind: first, new (as first, by one connection, of other users), again, alone (as again, by one connection),
            customer, page or track.
        port: of the API.
        key: that opens it.
        users: whom to ask for.
    """

    def __init__(self, kind: str, port: int, key: str, users: Sequence[str]) -> None:
        self._kind = kind
        self._opened = {"base_url": f"http://127.0.0.1:{port}", "headers": {"authorization": f"Bearer {key}"}}
        half = len(users) // 2
        of_kind = {"first": users[:half], "new": users[half:], **dict.fromkeys(("again", "alone"), users[:ASKED_AGAIN])}
        self._users = of_kind.get(kind, users)
        self._connections = CONNECTIONS.get(kind, 8)
        self._took: list[float] = []
        self._errors = 0

    def wait(self) -> None:
        """Until the API answers."""
        deadline = time.monotonic() + 60
        with httpx2.Client(**self._opened) as session:
            while time.monotonic() < deadline:
                try:
                    if session.get("/health/live").status_code == 200:
                        return
                except httpx2.HTTPError:
                    time.sleep(0.2)
        raise TimeoutError("the API does not answer")

    def load(self, seconds: float) -> dict[str, float]:
        """Ask for so long, and say at which rate and how fast it was answered, in milliseconds."""
        if self._kind in ("again", "alone"):
            with httpx2.Client(**self._opened) as session:
                for user in self._users:
                    self._request(session, user)
        began = time.monotonic()
        with ThreadPoolExecutor(self._connections) as pool:
            list(pool.map(lambda worker: self._ask(worker, began + seconds), range(self._connections)))
        spent, ordered = time.monotonic() - began, sorted(self._took)
        return {
            "rate": len(ordered) / spent, "p50": ordered[len(ordered) // 2] * 1e3,
            "p99": ordered[int(len(ordered) * 0.99)] * 1e3, "errors": self._errors, "connections": self._connections,
        }  # fmt: skip

    def _ask(self, worker: int, until: float) -> None:
        with httpx2.Client(**self._opened) as session:
            number = worker
            while time.monotonic() < until and (self._kind not in ("first", "new") or number < len(self._users)):
                began = time.perf_counter()
                self._errors += self._request(session, self._users[number % len(self._users)]) >= 400
                self._took.append(time.perf_counter() - began)
                number += self._connections

    def _request(self, session: Any, user: str) -> int:
        of_user = {"tenant_id": TENANT, "user_id": user}
        match self._kind:
            case "customer":
                answer = session.get(f"/customers/{user}")
            case "page":
                answer = session.get(f"/app/customers/{user}")
            case "track":
                viewed = {**of_user, "product_id": "p1", "interaction_type": "VIEWED"}
                answer = session.post("/graph/track", json=viewed)
            case _:
                answer = session.post("/recommend/products", json={**of_user, "top_k": 10})
        return int(answer.status_code)


if __name__ == "__main__":
    kind, port, key, seconds, users = sys.argv[1:]
    client = Client(kind, int(port), key, json.loads(users))
    client.wait()
    print(json.dumps(client.load(float(seconds))))
