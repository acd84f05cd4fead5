"""What is fetched into the cache, and who may fetch it."""

import hashlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from c360_pipeline.devstack import distributions
from c360_pipeline.devstack.class_archive import make_class_archive
from c360_pipeline.devstack.distributions import artifact, file_lock, is_class_archive, neo4j_class_archive
from c360_pipeline.errors import UnavailableError


@pytest.mark.parametrize(
    ("jar", "name"),
    [
        ("org.a.jackson-core-2.18.6.jar", "org.a.jackson-core"),
        (
            "io.netty.netty-transport-native-epoll-4.1.1.Final-linux-x86_64.jar",
            "io.netty.netty-transport-native-epoll-linux-x86_64",
        ),
        ("com.google.guava.guava-33.2.0-jre.jar", "com.google.guava.guava"),
        ("org.neo4j.gds.annotations-2.13.9.jar", "org.neo4j.gds.annotations"),
        ("org.neo4j.annotations-5.26.30.jar", "org.neo4j.annotations"),
        ("strange.jar", "strange.jar"),
    ],
)
def test_group_and_artifact_of_a_jar(jar: str, name: str) -> None:
    assert artifact(jar) == name


def archive_of(folder: Path, size: int) -> Path:
    """A file of so many bytes that takes no space."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "classes.jsa").open("wb") as file:
        file.truncate(size)
    return folder / "classes.jsa"


@pytest.mark.parametrize(("megabytes", "is_the_servers"), [(0, False), (14, False), (154, True)])
def test_a_class_archive_of_a_tool_is_not_that_of_the_server(
    tmp_path: Path, megabytes: int, is_the_servers: bool
) -> None:
    assert is_class_archive(archive_of(tmp_path, megabytes * 1_000_000)) is is_the_servers


def test_there_is_no_class_archive_where_there_is_no_file(tmp_path: Path) -> None:
    assert not is_class_archive(tmp_path / "classes.jsa")


def test_an_archive_that_can_not_be_made_fails_nothing_and_a_wrong_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_CACHE", str(tmp_path))
    wrong = archive_of(neo4j_class_archive().parent, 14_000_000)

    def refuse(archive: Path) -> None:
        raise UnavailableError("neo4j did not start")

    monkeypatch.setattr("c360_pipeline.devstack.class_archive._make", refuse)
    assert make_class_archive(lambda line: None) is False
    assert not wrong.exists()


def hold(path: Path, held: Event) -> None:
    """Have the lock until the process is killed."""
    with file_lock(path):
        held.set()
        multiprocessing.Event().wait()


def test_whoever_waits_for_the_lock_says_so_and_gets_it_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "install.lock"
    context = multiprocessing.get_context("spawn")
    held, waiting = context.Event(), multiprocessing.Event()
    holder = context.Process(target=hold, args=(path, held))
    holder.start()
    assert held.wait(60)

    def take() -> str:
        with file_lock(path, lambda line: waiting.set()):
            return "taken"

    with ThreadPoolExecutor() as pool:
        taken = pool.submit(take)
        assert waiting.wait(60)
        assert not taken.done()
        holder.kill()
        assert taken.result(60) == "taken"
    holder.join()


def test_a_jar_that_is_not_the_tested_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jars"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "a-1.jar").write_bytes(b"a")
    (folder / "lib" / "b-1-linux-riscv64.jar").write_bytes(b"of another system")
    monkeypatch.setattr(distributions, "SUMS", tmp_path)
    (tmp_path / "x.sha256").write_text(f"{hashlib.sha256(b'a').hexdigest()}  lib/a-1.jar\n")
    distributions.require_known(folder, "x")
    (folder / "lib" / "a-1.jar").write_bytes(b"b")
    with pytest.raises(UnavailableError, match="lib/a-1"):
        distributions.require_known(folder, "x")
    (folder / "lib" / "a-1.jar").write_bytes(b"a")
    (folder / "lib" / "c-1.jar").write_bytes(b"c")
    with pytest.raises(UnavailableError, match="lib/c-1"):
        distributions.require_known(folder, "x")


def test_what_is_installed_is_what_was_tested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    distributions.require_known(distributions.neo4j_distribution(), "neo4j")
    distributions.require_known_modules(distributions.versitygw_binary())
    sums = (distributions.SUMS / "versitygw.sum").read_text(encoding="utf-8")
    (tmp_path / "versitygw.sum").write_text(sums.replace("versitygw v1.8.0 h1:", "versitygw v1.8.0 h1:x"))
    monkeypatch.setattr(distributions, "SUMS", tmp_path)
    with pytest.raises(UnavailableError, match="not built of what this version was tested with"):
        distributions.require_known_modules(distributions.versitygw_binary())
