"""The people and products of the sample: the same in the silos, the catalogue and the events, on every machine."""

import hashlib
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SAMPLE_DATE = datetime(2025, 11, 3, tzinfo=UTC)
"""The sample's today: questions about the last 30 days have answers on this date."""

SEED = 360
ACCOUNTS = 240
SILO_TENANT = "acme"
TENANTS = (SILO_TENANT, "globex", "initech", "umbrella", "stark", "wayne", "tyrell", "hooli")

FIRST_NAMES = (
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Inga", "Jonas", "Kavya", "Liam", "Maya",
    "Noah", "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wei", "Yara",
)  # fmt: skip
LAST_NAMES = (
    "Adler", "Brown", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Hansen", "Ito", "Jensen", "Khan", "Larsen",
    "Moreau", "Novak", "Okafor", "Patel", "Quist", "Rossi", "Silva", "Tanaka", "Urban", "Vogel", "Weber", "Young",
)  # fmt: skip
COUNTRIES = ("DE", "US", "IN", "BR", "FR", "JP", "GB", "ES")
CATEGORIES = ("headphones", "speakers", "consoles", "cables", "lighting", "furniture", "books", "games")
ADJECTIVES = ("Silent", "Bright", "Compact", "Classic", "Wireless", "Studio", "Travel", "Family", "Pro", "Eco")
NOUNS = {
    "headphones": "Headphones", "speakers": "Speaker", "consoles": "Controller", "cables": "Cable",
    "lighting": "Lamp", "furniture": "Chair", "books": "Handbook", "games": "Puzzle",
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Somebody who acts: with an account in the silos when the tenant has them.

    `household` is equal for people who share a device, whom stitching can't tell apart.
    """

    tenant_id: str
    account_id: int
    full_name: str
    email: str
    user_id: str
    created_at: datetime
    devices: tuple[str, ...]
    household: str

    @property
    def email_hash(self) -> str:
        """sha256 of the address, as a newsletter's links carry it."""
        return hashlib.sha256(self.email.encode()).hexdigest()


@dataclass(frozen=True)
class Product:
    """Something to look at and to buy; `price` in the shop's currency, None when it has none."""

    tenant_id: str
    id: str
    name: str
    category: str
    price: float | None


def people(tenant_id: str, count: int = ACCOUNTS) -> list[Person]:
    """The tenant's people; the first of the tenant with silos is John Smith."""
    rng = random.Random(f"{SEED}/people/{tenant_id}")  # noqa: S311 - sample data
    persons = []
    for number in range(1, count + 1):
        first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
        email = f"{first}.{last}{number}@email.com".lower()
        if tenant_id == SILO_TENANT and number == 1:
            first, last, email = "John", "Smith", "john.smith@email.com"
        days = rng.randint(20, 1100)
        # Every 30th account shares its only computer with the account before it.
        householder = number - 1 if number % 30 == 0 else number
        is_shared = number % 30 in (0, 29)
        kinds = ("computer",) if is_shared else ("phone", "laptop", "tv")[: rng.randint(1, 3)]
        devices = tuple(f"d-{tenant_id}-{householder}-{kind}" for kind in kinds)
        # Most producers send the address, some the account's number: the graph knows both.
        user_id = str(number) if number % 5 == 0 else email
        created = SAMPLE_DATE - timedelta(days=days, minutes=rng.randint(0, 1439))
        household = f"{tenant_id}/household-{householder}"
        persons.append(Person(tenant_id, number, f"{first} {last}", email, user_id, created, devices, household))
    return persons


def products(tenant_id: str, count: int = 120) -> list[Product]:
    """The tenant's catalogue."""
    rng = random.Random(f"{SEED}/products/{tenant_id}")  # noqa: S311 - sample data
    catalog = []
    for number in range(1, count + 1):
        category = CATEGORIES[number % len(CATEGORIES)]
        name = f"{rng.choice(ADJECTIVES)} {NOUNS[category]} {number}"
        catalog.append(Product(tenant_id, f"sku-{number:04d}", name, category, round(rng.uniform(5, 400), 2)))
    return catalog
