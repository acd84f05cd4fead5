"""Ids in paths of routes: any text, with slashes and line ends in it."""

from starlette.convertors import Convertor, register_url_convertor


class _Text(Convertor[str]):
    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def know_texts() -> None:
    """Let routes have parts like `{user_id:text}`; Starlette's own `path` stops at a line end, and finds no such id."""
    register_url_convertor("text", _Text())
