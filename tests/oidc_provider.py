"""A real OpenID provider for tests: `oidc-provider` of npm, which the OpenID Foundation has certified."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from c360_pipeline.devstack.distributions import cache_folder, file_lock
from c360_pipeline.devstack.service import free_port

SOURCES = Path(__file__).with_name("oidc")
CLIENT, SECRET = "c360", "a-secret-of-the-tests-that-is-long-enough"


def _installed() -> Path:
    """The folder with the provider and what it needs, as the lock file names them."""
    if shutil.which("npm") is None:
        pytest.fail("npm is missing: apt-get install -y nodejs npm")
    folder = cache_folder() / "oidc-provider-for-tests"
    with file_lock(cache_folder() / "oidc-provider.lock", lambda _: None):
        lock, held = SOURCES / "package-lock.json", folder / "package-lock.json"
        if not (held.exists() and held.read_bytes() == lock.read_bytes()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shutil.copy(SOURCES / "package.json", folder)
            shutil.copy(lock, folder / "locked.json")
            (folder / "locked.json").rename(folder / "package-lock.json")
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True)
    shutil.copy(SOURCES / "provider.mjs", folder)
    return folder


@contextmanager
def running(accounts: Mapping[str, Mapping[str, Any]], callback: str, *, in_token: bool = False) -> Iterator[str]:
    """A provider; its address.

    Args:
        accounts: claims by account; every password is right.
        callback: where it sends people back to.
        in_token: whether claims are in the ID token; else the client asks for them.
    """
    port = free_port(0)
    command = ["node", "provider.mjs", str(port), callback, str(in_token).lower()]
    with subprocess.Popen(
        command, cwd=_installed(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(accounts))
        process.stdin.close()
        try:
            assert process.stdout.readline() == "listening\n"
            # By a name: to a browser it is another site than the pages, which have a number.
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
