"""The type of the fixture that keeps a picture of a page under a name."""

from collections.abc import Callable

from playwright.sync_api import Page

Picture = Callable[[Page, str], None]
