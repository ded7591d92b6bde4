"""One load for the jobs of a run: children of its fork server are processes like any other."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from measuring_factory import FEW, FILES, World, make_world, read
from repository_copy import ROOT

from invarlock.cli import evaluate, main
from invarlock.run import forkserver
from invarlock.run.forkserver import Call, Child, NoServer, Setting, start

LIMIT = 100.0  # seconds, on a machine that is busy with other things
DOWN = "model.layers.0.mlp.down_proj.weight"
ENDINGS = {
    "crashed": "echo 'RuntimeError: boom' >&2; exit 1",
    "out_of_memory": "kill -9 $$",
    "timeout": "exec sleep 60",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is none elsewhere")


@dataclass(frozen=True)
class Run:
    """A run whose jobs share a load: the process that stands for its workflow, and its folder."""

    workflow: subprocess.Popen[bytes]
    folder: Path

    @property
    def script(self) -> Path:
        """What a child does that becomes a shell."""
        return self.folder / "script.sh"

    def server(self) -> int:
        """The server that answers this process."""
        told = self.folder / "server"
        self.script.write_text(f"echo $PPID > {told}\n")
        assert start(Call("forked_job"), Setting(), (0, 1, 2)).wait() == 0
        return int(told.read_text())

    def servers(self) -> list[int]:
        """The run's servers."""
        mine = f'"workflow": {self.workflow.pid},'.encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = (path.parent / "stat").read_text().rpartition(") ")[2].split()[1]
            if b"invarlock.run.forkserver" in words and mine in words:
                found.append((int(parent), int(path.parent.name)))
        pids = {pid for _, pid in found}
        return [pid for parent, pid in found if parent not in pids]  # and no children of theirs

    def children(self) -> list[int]:
        """The processes that these forked."""
        lists = [Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in self.servers()]
        return [int(word) for text in lists for word in text.split()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The run of this module; servers end with it."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as workflow:
        made = Run(workflow, tmp_path_factory.mktemp("run"))
        yield made
        workflow.kill()
        wait_until(lambda: not made.servers())


@pytest.fixture
def run(shared: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same, with the variables of its jobs."""
    monkeypatch.setenv("TMPDIR", str(shared.folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("FORKED_SCRIPT", str(shared.script))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(forkserver.VARIABLE, str(shared.workflow.pid))
    monkeypatch.setattr(forkserver, "OF_A_JOB", {*forkserver.OF_A_JOB, "PYTEST_CURRENT_TEST"})
    return shared


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A measured baseline on few windows."""
    return make_world(tmp_path_factory.mktemp("world"), FEW)


@pytest.fixture
def worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the measuring process by a shell script; returns how to write it."""
    monkeypatch.setattr(evaluate, "WORKER", "forked_job")
    return lambda script: run.script.write_text(f"{script}\n") and None


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process goes on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def variables() -> dict[str, str]:
    """Those of a job: what pytest says in one is different in each test."""
    return {name: text for name, text in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def command(words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """A command of the package, as a job runs it."""
    return subprocess.run(
        [sys.executable, "-m", "invarlock", *words],
        env=variables() | more,
        capture_output=True,
        text=True,
        check=False,
    )


# --- a child is a process like any other -----------------------------------------------------


def test_a_child_is_as_a_process_of_its_own(run: Run, tmp_path: Path) -> None:
    """Words, folder, variables, mask, signals, limits, threads and streams; what is drawn without
    a seed is new each time; and CUDA has not been started."""
    (tmp_path / "in").write_text("what it reads")
    said = {}
    os.umask(0o027)
    try:
        for how in ("own", "forked", "again"):
            with open(tmp_path / "in") as given, open(tmp_path / how, "w") as told:
                if how == "own":
                    words = [sys.executable, "-m", "forked_job", "state"]
                    code = subprocess.run(words, stdin=given, stdout=told, check=False).returncode
                else:
                    call = Call("forked_job", ("state",))
                    code = start(call, Setting(), (given.fileno(), told.fileno(), 2)).wait()
            assert code == 7
            said[how] = json.loads((tmp_path / how).read_text())
    finally:
        os.umask(0o022)
    drawn = [found.pop("drawn") for found in said.values()]
    assert said["forked"] == said["own"]
    assert len({str(numbers) for numbers in drawn}) == len(drawn) == 3
    assert (said["own"]["running"], said["own"]["cuda"]) == (1, False)
    assert said["own"]["mask"] == 0o027


def test_what_a_child_takes_is_counted(run: Run, tmp_path: Path) -> None:
    """CPU seconds and memory of the command's child, which no process tree shows."""
    words = "import sys; from invarlock.run import forkserver, usage; from pathlib import Path\n"
    words += "call = forkserver.Call('forked_job', ('burn',))\n"
    words += "assert forkserver.start(call, forkserver.Setting(), (0, 1, 2)).wait() == 0\n"
    words += "usage.write(Path(sys.argv[1]), 1.5)"
    for _ in range(2):  # the first may have waited for the libraries
        subprocess.run([sys.executable, "-c", words, str(tmp_path / "usage.tsv")], check=True)
    header, row = (tmp_path / "usage.tsv").read_text().splitlines()
    found = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert found["s"] == "1.5000"
    assert 1 <= float(found["cpu_time"]) < 60
    assert 100 < float(found["max_rss"]) < 4000


@pytest.mark.parametrize("status", ENDINGS)
def test_a_recorded_ending_is_the_same(
    run: Run, world: World, tmp_path: Path, worker: Callable[[str], None], status: str
) -> None:
    """A crash, SIGKILL and the time limit of a child cost only its own subject."""
    before = run.server()
    worker(ENDINGS[status])
    more = ("--record-failure", "--timeout-minutes", "0.02")
    assert main(world.command(world.baseline, tmp_path / "out", *more)) == 0
    assert read(tmp_path / "out", "outcome.json")["status"] == status
    assert alive(before)


def test_an_end_by_a_scheduler_is_never_recorded(
    world: World, tmp_path: Path, worker: Callable[[str], None]
) -> None:
    """SIGTERM of the measuring process is no crash."""
    worker("kill -TERM $$")
    with pytest.raises(SystemExit) as ended:
        main(world.command(world.baseline, tmp_path / "out", "--record-failure"))
    assert ended.value.code == 143
    assert not (tmp_path / "out").exists()


def test_the_batch_is_halved_when_memory_runs_out(
    world: World, tmp_path: Path, worker: Callable[[str], None]
) -> None:
    """The exit code of a failed allocation, and the job on standard input."""
    worker(f"cat >> {tmp_path}/jobs; echo >> {tmp_path}/jobs; exit 75")
    more = ("--attempt", "2", "--record-failure")
    assert main(world.command(world.baseline, tmp_path / "out", *more)) == 0
    jobs = [json.loads(line) for line in (tmp_path / "jobs").read_text().splitlines()]
    assert [job["token_budget"] for job in jobs] == [1024, 512]
    assert read(tmp_path / "out", "outcome.json")["status"] == "out_of_memory"


# --- ends -------------------------------------------------------------------------------------

HOLDER = (
    "from invarlock.run.forkserver import *\nstart(Call('forked_job'), Setting(), (0, 1, 2)).wait()"
)


def test_a_child_ends_with_its_caller(run: Run, tmp_path: Path) -> None:
    """However that ends: kill -9 here."""
    run.script.write_text(f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid\n"
                          "exec sleep 600\n")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", HOLDER], env=variables()) as caller:
        wait_until((tmp_path / "pid").is_file)
        child = int((tmp_path / "pid").read_text())
        assert child in run.children()
        caller.kill()
    wait_until(lambda: not alive(child))
    assert run.servers()


def test_a_server_that_is_killed_costs_a_start(
    run: Run,
    world: World,
    tmp_path: Path,
    worker: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """kill -9 of the server in the middle of an evaluation: its child ends, one line is said, and
    the evaluation is made in a process of its own."""
    marker = tmp_path / "started"
    before = run.server()
    worker(f"if [ -e {marker} ]; then echo measured again >&2; exit 1; fi\n"
           f"echo $$ > {marker}; kill -9 $PPID; exec sleep 600")  # fmt: skip
    assert main(world.command(world.baseline, tmp_path / "out", "--record-failure")) == 0
    assert not alive(int(marker.read_text()))
    assert not alive(before)
    assert read(tmp_path / "out", "outcome.json")["error"] == "measured again"
    assert capfd.readouterr().err.count("one load: in a process of its own: ") == 1
    assert run.server() != before  # the next one has a server again


SERVER = """
import json, socket, sys
from pathlib import Path
from invarlock.run import forkserver
forkserver.IDLE, forkserver.TICK, watched = float(sys.argv[1]), 0.05, Path(sys.argv[3])
forkserver.state_of_code = lambda: watched.read_text()
forkserver._load = lambda classes: {}
place = Path(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(place))
listener.listen()
given = {"place": str(place), "workflow": int(sys.argv[4]), "level": "strict", "threads": 1}
forkserver.main([str(listener.detach()), json.dumps({**given, "network": False})])
"""


@pytest.mark.parametrize("reason", ["idle", "code", "workflow"])
def test_a_server_ends_by_itself(tmp_path: Path, reason: str) -> None:
    """Without a job for a while; when its code changes or is gone; with the run."""
    code, place = tmp_path / "code.py", tmp_path / "socket"
    code.write_text("1")
    idle = "0.5" if reason == "idle" else "3600"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as workflow:
        words = [sys.executable, "-c", SERVER, idle, str(place), str(code), str(workflow.pid)]
        with subprocess.Popen(
            words, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}
        ) as server:
            wait_until(place.exists)
            if reason == "code":
                time.sleep(1)
                assert server.poll() is None
                code.unlink()
            if reason == "workflow":
                workflow.kill()
            assert server.wait(LIMIT) == 0
            assert not place.exists()
        workflow.kill()


def test_a_server_outlives_its_run_by_its_last_child(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that goes on without its workflow goes on here too; then nothing is left."""
    run.script.write_text(
        f"touch {tmp_path}/started; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 3\n"
    )
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as workflow:
        monkeypatch.setenv(forkserver.VARIABLE, str(workflow.pid))
        child = start(Call("forked_job"), Setting(), (0, 1, 2))
        wait_until((tmp_path / "started").is_file)
        mine = Run(workflow, run.folder)
        workflow.kill()
    assert len(mine.servers()) == 1
    (tmp_path / "go").touch()
    assert child.wait() == 3
    wait_until(lambda: not mine.servers())


# --- who is answered --------------------------------------------------------------------------


def test_another_surrounding_has_another_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable, a level, threads, a folder, the run, the code; not what is said of each job."""
    pid = run.workflow.pid

    def key(setting: Setting = Setting()) -> str:  # noqa: B008
        return forkserver._key(setting, pid)

    first = key()
    others = [key(Setting("throughput")), key(Setting(threads=2)), key(Setting(network=True))]
    others.append(forkserver._key(Setting(), os.getpid()))
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD_OF_A_TEST", "x")
        others.append(key())
    with monkeypatch.context() as patch:
        patch.chdir("/")
        others.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(forkserver, "state_of_code", lambda: [["other", 1, 1]])
        others.append(key())
    for name in ("INVARLOCK_PROGRESS", "INVARLOCK_USAGE", "PWD", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "/else/where")
    assert key() == first
    assert len({first, *others}) == 8


def test_changed_code_is_seen(tmp_path: Path) -> None:
    """By the name, size and time of each file of the package."""
    package = shutil.copytree(ROOT / "invarlock/verdict", tmp_path / "package")
    before = forkserver.state_of_code(package)
    (package / "timings.py").write_text("x = 1\n")
    after = forkserver.state_of_code(package)
    (package / "timings.py").unlink()
    assert len({json.dumps(s) for s in (before, after, forkserver.state_of_code(package))}) == 3


def test_a_folder_of_somebody_else_is_not_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that others may write to, or a link: no socket is looked for in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr("tempfile.tempdir", None)
        folder = Path(short, f"invarlock-load-{os.getuid()}")
        folder.mkdir(mode=0o755)
        with pytest.raises(NoServer, match="not this user's alone"):
            start(Call("forked_job"), Setting(), (0, 1, 2))
        folder.rmdir()
        folder.symlink_to(run.folder)
        with pytest.raises(NoServer, match="not this user's alone"):
            start(Call("forked_job"), Setting(), (0, 1, 2))


def asked_by_nobody(place: Path) -> str:
    """What another user gets from a socket."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(place))
                told = repr(connection.recv(1))
            except OSError as error:
                told = type(error).__name__
        os.write(writer, told.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as answer:
        return answer.read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_answered(run: Run) -> None:
    """The folder lets nobody in; where it does, against all rules, the server does not answer."""
    words = Path(f"/proc/{run.server()}/cmdline").read_text().split("\0")
    place = Path(json.loads(words[-2])["place"])
    assert asked_by_nobody(place) == "PermissionError"
    opened = {path: path.stat().st_mode for path in (place, *place.parents[:-1])}
    try:
        for path in opened:
            path.chmod(0o777)
        assert asked_by_nobody(place) in ("b''", "ConnectionResetError")
    finally:
        for path, mode in opened.items():
            path.chmod(mode)


def test_a_server_that_does_not_answer_is_done_without(
    run: Run,
    world: World,
    tmp_path: Path,
    worker: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After a while: one line, and a process of its own."""
    server = run.server()
    os.kill(server, signal.SIGSTOP)
    monkeypatch.setattr(forkserver, "ANSWER", 0.5)
    worker("echo alone >&2; exit 1")
    try:
        assert main(world.command(world.baseline, tmp_path / "out", "--record-failure")) == 0
    finally:
        os.kill(server, signal.SIGCONT)
    assert read(tmp_path / "out", "outcome.json")["error"] == "alone"
    assert "one load: in a process of its own: timed out" in capfd.readouterr().err


# --- the same results -------------------------------------------------------------------------


def results(world: World, out: Path) -> dict[str, bytes]:
    """What an edit, a damage and the evaluations of both write."""
    words = ["--baseline", str(world.baseline), "--out"]
    edit = ["edit", "--spec", "quant_rtn:4:32:all", *words, str(out / "a"), "--metadata"]
    damage = ["inject", "--error-type", "nan_injection", *words, str(out / "b"), "--metadata"]
    for asked in ([*edit, str(out / "a.json")], [*damage, str(out / "b.json")]):
        done = command(asked)
        assert done.returncode == 0, done.stderr
    for name in "ab":
        progress = {"INVARLOCK_PROGRESS": str(out / f"progress.{name}")}
        done = command(world.command(out / name, out / f"e{name}"), **progress)
        assert done.returncode == 0, done.stderr
    files = [*out.glob("[ab]/*"), *out.glob("*.json"), *out.glob("progress.*")]
    files += [out / f"e{name}" / file for name in "ab" for file in FILES]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_the_bytes_are_those_of_processes_of_their_own(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit, a damage, a rejected subject and a measured one, with its progress."""
    before = set(run.servers())
    forked = results(world, tmp_path / "forked")
    assert len(set(run.servers()) - before) <= 1
    monkeypatch.delenv(forkserver.VARIABLE)
    assert results(world, tmp_path / "own") == forked
    assert b"\n" in forked["progress.a"]
    assert "ea/evaluation.report.json" in forked


def test_a_command_ends_as_it_would(run: Run, world: World, tmp_path: Path) -> None:
    """Its exit code and its line; Ctrl-C reaches the child, which says so and leaves no claim."""
    bad = ["edit", "--baseline", str(world.baseline), "--spec", "quant_rtn:nonsense", "--out", "x"]
    done = command([*bad, "--metadata", str(tmp_path / "m")])
    assert done.returncode == 2
    assert done.stderr.startswith("invarlock edit: ")

    (run.folder / f"invarlock-gpus-{os.getuid()}").mkdir(mode=0o700)
    with open(run.folder / f"invarlock-gpus-{os.getuid()}/gpu-6", "w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)  # it waits for as long as this device is in use
        words = ["run", "--model", str(world.baseline), "--windows", str(world.windows)]
        running = subprocess.Popen(
            [sys.executable, "-m", "invarlock", *words, "--out", str(tmp_path / "out")],
            env=variables() | {"CUDA_VISIBLE_DEVICES": "6"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        assert running.stdout.readline() == "waiting for 1 of GPU 6: in use\n"
        assert (tmp_path / ".out.claim").is_file()
        assert run.children()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 130
    assert said.endswith("invarlock run: interrupted\n")
    assert not (tmp_path / ".out.claim").exists()
    assert not run.children()


def test_a_plain_command_leaves_no_server_behind(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no run says that it shares a load, none is shared."""
    monkeypatch.delenv(forkserver.VARIABLE)
    before = set(Path(run.folder).rglob("*"))
    monkeypatch.setattr(forkserver, "start", None)
    words = ["inject", "--baseline", str(world.baseline), "--error-type", "nan_injection"]
    assert main([*words, "--out", str(tmp_path / "b"), "--metadata", str(tmp_path / "m")]) == 0
    assert set(Path(run.folder).rglob("*")) == before


def test_a_child_can_be_told_once_it_has_ended(run: Run) -> None:
    """A signal for a child that is gone reaches nobody, and its end is still told."""
    child: Child = start(Call("forked_job", ("burn",)), Setting(), (0, 1, 2))
    time.sleep(3)
    child.kill()
    assert child.wait() in (0, -signal.SIGKILL)
