"""The store of the embedded Neo4j as files: made by import, swapped in whole, dumped and loaded."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from c360_pipeline.devstack.pause import paused
from c360_pipeline.devstack.service import without_secrets
from c360_pipeline.devstack.services import neo4j_admin, neo4j_data, use_neo4j_data, write_neo4j_conf
from c360_pipeline.errors import C360Error, InvariantError
from c360_pipeline.settings import write_private
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.recovery.import_files import Completion, ImportWriter

Observe = Callable[[str], None]
DATABASE = "neo4j"
OF_THE_SERVER = ("databases/system", "transactions/system", "dbms", "server_id")
"""What a store keeps when its database is another: users and passwords, and which server it is."""
COMPLETIONS = "completions.json"
CELL_BUFFER = "64m"
"""The longest value that an import reads."""


class AdminError(C360Error):
    """Neo4j's tool failed; the message holds the end of what it said."""


@dataclass(frozen=True)
class Plan:
    """How far a store that is to be swapped in is.

    Attributes:
        moment: what it is made from; another snapshot needs another store.
        data: its folder, relative to the server's.
        before: the folder that the server used before.
        stage: writing, imported, swapped or proved.
        nodes: rows in it.
        relationships: rows in it.
    """

    moment: str
    data: str
    before: str
    stage: str = "writing"
    nodes: int = 0
    relationships: int = 0


class StagedStore:
    """A store that is made beside the one in use and takes its place.

    Each step can be broken off and done again; a plan file says how far it is.

    Args:
        home: state folder of the embedded services.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._server = home / "neo4j"
        self._work = self._server / "rebuild"

    @property
    def plan(self) -> Plan | None:
        """How far an earlier attempt came."""
        path = self._work / "plan.json"
        return Plan(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def make(self, archive: Archive, moment: str, observe: Observe) -> Plan:
        """Write the archive into a new store, or go on with one of the same snapshot that is there.

        Raises:
            AdminError: the import failed.
        """
        plan = self.plan
        if plan is not None and plan.moment == moment and plan.stage in ("imported", "swapped"):
            return plan
        self.discard()
        current = neo4j_data(self._server).relative_to(self._server)
        # The store in use may be of the same snapshot: each has a name of its own.
        plan = Plan(moment, f"stores/{moment[:16]}-{uuid4().hex[:8]}", str(current))
        self._save(plan)
        try:
            counts = import_archive(archive, self._server / plan.data, self._work, observe)
        except C360Error:
            self.discard()
            raise
        plan = replace(plan, stage="imported", nodes=counts[0], relationships=counts[1])
        self._save(plan)
        return plan

    def completions(self, plan: Plan) -> list[Completion]:
        """What is left to do by statements in the new store."""
        return completions_of(self._server / plan.data)

    def swap_in(self, plan: Plan) -> Plan:
        """Make the server use the new store; it stops for a few seconds."""
        if not self._is_used(plan):
            with paused(self._home, "neo4j"):
                self._take_server_files(plan)
                use_neo4j_data(self._server, self._server / plan.data)
        plan = replace(plan, stage="swapped")
        self._save(plan)
        return plan

    def _is_used(self, plan: Plan) -> bool:
        return neo4j_data(self._server) == self._server / plan.data

    def _take_server_files(self, plan: Plan) -> None:
        for name in OF_THE_SERVER:
            source, target = self._server / plan.before / name, self._server / plan.data / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copyfile(source, target)

    def swap_back(self, plan: Plan) -> None:
        """Make the server use the store of before again, and remove the new one."""
        with paused(self._home, "neo4j"):
            use_neo4j_data(self._server, self._server / plan.before)
        shutil.rmtree(self._server / plan.data, ignore_errors=True)
        self._forget()

    def accept(self, plan: Plan) -> None:
        """Remove the store of before."""
        plan = replace(plan, stage="proved")
        self._save(plan)
        self.discard()

    def discard(self) -> None:
        """Remove what an earlier attempt left; a store that was not proved goes out of use."""
        plan = self.plan
        if plan is not None and plan.stage == "proved":
            shutil.rmtree(self._server / plan.before, ignore_errors=True)
        elif plan is not None and self._is_used(plan):
            self.swap_back(plan)
        elif plan is not None:
            shutil.rmtree(self._server / plan.data, ignore_errors=True)
        self._forget()

    def _save(self, plan: Plan) -> None:
        self._work.mkdir(parents=True, exist_ok=True)
        write_private(self._work / "plan.json", json.dumps(asdict(plan)))

    def _forget(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)


def import_archive(archive: Archive, data: Path, work: Path, observe: Observe) -> tuple[int, int]:
    """Make a store that holds what the archive says; returns how many nodes and relationships.

    Args:
        archive: the snapshot.
        data: folder of the store; what is in it goes.
        work: folder for files that are not needed afterwards.
        observe: called with what comes next.

    Raises:
        AdminError: the import failed.
        InvariantError: it left something out.
    """
    files_folder, conf_home = work / "files", work / "admin"
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(files_folder, ignore_errors=True)
    data.mkdir(parents=True)
    files = ImportWriter(archive, files_folder, lambda what: observe(f"writing {what}")).write()
    observe(f"importing {files.nodes:,} nodes and {files.relationships:,} relationships")
    write_neo4j_conf(conf_home, data, 0)
    arguments = [file.argument for file in files.files] or [_no_nodes(files_folder)]
    report = work / "import-report.txt"
    run_admin(
        conf_home, "database", "import", "full", DATABASE, "--overwrite-destination", "--id-type=actual",
        "--multiline-fields=true", f"--read-buffer-size={CELL_BUFFER}", "--array-delimiter=;", "--bad-tolerance=0",
        f"--report-file={report}", *arguments,
    )  # fmt: skip
    if report.exists() and report.stat().st_size:
        first = report.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        raise InvariantError(f"The import left rows out, the first: {first}")
    shutil.rmtree(files_folder)
    left = [asdict(completion) for completion in files.completions]
    (data / COMPLETIONS).write_text(json.dumps(left), encoding="utf-8")
    return files.nodes, files.relationships


def _no_nodes(folder: Path) -> str:
    """The argument for an archive of which nothing is left: the tool wants nodes, and takes none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nothing.csv"
    path.write_text("id:ID\n", encoding="utf-8")
    return f"--nodes={path}"


def completions_of(data: Path) -> list[Completion]:
    """What is left to do by statements in a store that was imported."""
    path = data / COMPLETIONS
    return [Completion(**one) for one in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def run_admin(folder: Path, *arguments: str) -> None:
    """Run Neo4j's tool to its end.

    Raises:
        AdminError: it failed.
    """
    command, environment = neo4j_admin(folder, *arguments)
    done = subprocess.run(
        command, env={**without_secrets(), **environment}, capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise AdminError(f"neo4j-admin {' '.join(arguments[:2])} failed:\n" + "\n".join(said))


def dump(home: Path, folder: Path) -> Path:
    """Write the database into a dump file; the server stops meanwhile.

    Args:
        home: state folder of the embedded services.
        folder: where to; made when it is not there.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with paused(home, "neo4j"):
        run_admin(home / "neo4j", "database", "dump", DATABASE, f"--to-path={folder}", "--overwrite-destination")
    return folder / f"{DATABASE}.dump"


def load(home: Path, folder: Path) -> None:
    """Replace the database by the one in a folder's dump file; the server stops meanwhile.

    Raises:
        AdminError: there is no such file, or it is damaged.
    """
    with paused(home, "neo4j"):
        run_admin(home / "neo4j", "database", "load", DATABASE, f"--from-path={folder}", "--overwrite-destination")
