"""Rows of people on disk: gone with the work, or with the next one's where a process was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from c360_pipeline.stores.local.scratch import scratch_folder

WORKER = """
import sys
from pathlib import Path
from c360_pipeline.stores.local.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "rows").write_text("anna@example.org")
    print(folder, flush=True)
    sys.stdin.read()
"""


def _worker(parent: Path) -> subprocess.Popen[str]:
    """A process that has a folder until it is killed, or nobody holds its input any more."""
    command = [sys.executable, "-c", WORKER, str(parent)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_nothing_is_left_afterwards_whether_it_went_well_or_not(tmp_path: Path) -> None:
    """The folder and its lock go."""

    def work(parts: int) -> None:
        with scratch_folder(tmp_path / "cache") as folder:
            (folder / "rows").write_text(str(1 / parts))

    work(1)
    with pytest.raises(ZeroDivisionError):
        work(0)
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_killed_process_left_goes_with_the_next_and_what_another_uses_stays(tmp_path: Path) -> None:
    """Of two processes the one that is killed loses its folder, the other keeps it."""
    with _worker(tmp_path) as killed, _worker(tmp_path) as alive:
        left, used = (Path(str(worker.stdout.readline()).strip()) for worker in (killed, alive) if worker.stdout)
        killed.kill()
        killed.wait()
        assert (left / "rows").exists()
        (tmp_path / "somebody-elses.lock").touch()

        with scratch_folder(tmp_path) as folder:
            assert folder.stat().st_mode & 0o077 == 0
            assert not left.exists()
            assert (used / "rows").exists()
            assert len(list(tmp_path.glob("c360-scratch-*"))) == 4
        assert used.exists()
        alive.kill()
    with scratch_folder(tmp_path):
        assert not used.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses.lock"]
