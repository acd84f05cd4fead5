"""The production wheel, in an environment of its own outside the repository: without the embedded services it runs."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from event_world import World

from c360_pipeline.cli.embedded import postgres_tools
from c360_pipeline.settings import Settings, merged_environment
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

REPOSITORY = Path(__file__).parents[2]
LOAD = """
import json
from pathlib import Path
import c360_pipeline
from c360_pipeline.definitions import defs
print(json.dumps([str(Path(c360_pipeline.__file__)), len(list(defs.assets)), sorted(s.name for s in defs.sensors)]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the declared build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(built, cwd=REPOSITORY, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it depends on is that of the tests, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("production") / "env"
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    theirs = folder / "lib" / version / "site-packages"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel],
        check=True,
    )
    # After the wheel's own folder; the editable installation of the repository is not followed from here.
    packages = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    (theirs / "dependencies.pth").write_text(f"{packages}\n")
    return folder / "bin"


def run(installed: Path, cwd: Path, *args: str, **given: str) -> subprocess.CompletedProcess[str]:
    """A process without any setting of ours but the given ones, away from the repository."""
    ours = ("NEO4J_", "ETL_DB_", "AWS_", "C360_", "DAGSTER_", "KAFKA_", "CASSANDRA_", "PYTHON")
    environment = (
        {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"C360_HOME": str(cwd / "home")} | given
    )
    command = [str(installed / "python"), *args] if args[0] == "-c" else [str(installed / "c360"), *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_no_embedded_service_and_what_dagster_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "devstack" in name or name.startswith("tests")]
    assert {"c360_pipeline/dagster.yaml", "c360_pipeline/workspace.yaml", "c360_pipeline/definitions.py"} <= set(names)


def test_help_runs_without_the_embedded_services(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "reconcile" in shown.stdout


def test_doctor_says_which_settings_are_missing(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "doctor", "--json")
    assert shown.returncode == 1
    (settings,) = [f for f in json.loads(shown.stdout) if f["name"].startswith("settings")]
    assert settings["found"] is None
    assert "NEO4J_URI" in settings["install"]


def test_the_definitions_load_without_a_service(installed: Path, tmp_path: Path) -> None:
    loaded = run(installed, tmp_path, "-c", LOAD)
    assert loaded.returncode == 0, loaded.stderr
    file, assets, sensors = json.loads(loaded.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(installed.parent)
    assert assets > 20
    assert "new_landing_files" in sensors


@pytest.mark.parametrize("command", [["up"], ["demo"], ["seed"], ["generate", "--out", "x"]])
def test_a_command_of_the_embedded_services_says_what_to_install(
    installed: Path, tmp_path: Path, command: list[str]
) -> None:
    shown = run(installed, tmp_path, *command)
    assert shown.returncode == 2
    assert "c360-pipeline-devstack" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.soak
def test_servers_of_ones_own_are_backed_up_rebuilt_and_searched(
    installed: Path, tmp_path: Path, home: Path, settings: Settings, landing: Landing, control: ControlDb, world: World
) -> None:
    (tmp_path / "one.jsonl").write_bytes(b"broken\n")
    landing.put_file(tmp_path / "one.jsonl", "landing/events/date=2025-11-03/")
    ours = ("NEO4J_", "ETL_DB_", "AWS_", "C360_BUCKET")
    given = {k: v for k, v in merged_environment(home).items() if k.startswith(ours)}
    given["PATH"] = f"{postgres_tools()}:{os.environ['PATH']}"

    def succeeds(*args: str) -> str:
        done = run(installed, tmp_path, *args, **given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    digest = json.loads(succeeds("backup", "kept", "--json"))["digest"]
    rebuilt = json.loads(succeeds("rebuild", "--json"))
    assert rebuilt["digest"] == rebuilt["digest_before"]
    assert world.findings() == set()
    assert "graph" in succeeds("erase", "--tenant", "acme", "--user", "u1", "--dry-run")
    assert json.loads(succeeds("backup", "kept", "--verify", "--json"))["digest"] == digest
    refused = run(installed, tmp_path, "rebuild", "--as-of", "2025-11-03T00:00Z", **given)
    assert refused.returncode == 2
    assert "c360-pipeline-devstack" in refused.stderr
