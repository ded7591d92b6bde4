"""One load for the jobs of a run: a process that has torch loaded forks one for each of them.

Loading the libraries takes seconds of a processor, as long as all else that a rejected subject or
an edit costs. The first job of a run that needs them starts a server, which loads them once and
forks a child for each request. A child is a process like any other: it has the caller's streams,
variables, folder and time limit, computes in it alone, and what ends it ends nothing else.

The server is the run's own. ``INVARLOCK_ONE_LOAD`` names the process whose jobs share a load; with
it the server ends, after 60 seconds without a job, and when the code that it has loaded changes.
It answers under a key of everything that a process takes over when it starts (:func:`_key`), on a
socket in a folder that no other user reaches. Whoever gets no answer works in a process of its own.

Once a caller has said who it is, the connection holds caller, server and child together: where it
ends, the child is killed; the child ends with the server; and it tells how the child ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import hashlib
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from invarlock.code_digest import PACKAGE
from invarlock.files import started
from invarlock.progress import FILE as PROGRESS
from invarlock.run import usage
from invarlock.run.determinism import THREAD_VARIABLES, set_environment

VARIABLE = "INVARLOCK_ONE_LOAD"
IDLE = 60.0  # seconds without a job after which a server ends
TICK = 5.0  # seconds between two looks at clock and code
ANSWER = 120.0  # seconds that a caller waits for a server: it may be loading, on a busy machine
READING = 10.0  # seconds that a server waits for the words of a caller
LONGEST = 100  # bytes of a socket's path; the kernel takes 107
PR_SET_PDEATHSIG = 1  # prctl(2)
# What may differ between two jobs of a run without a library having read it; and the numbers of
# threads, which Setting says.
OF_A_JOB = {"_", "OLDPWD", "PWD", "SHLVL", PROGRESS, usage.FILE, VARIABLE, *THREAD_VARIABLES}
# What every job needs, in the order in which they load each other. No device is looked at.
LIBRARIES = ("torch", "transformers", "invarlock.edits.apply", "invarlock.damage.inject",
             "invarlock.run.measure", "invarlock.run.calibrate")  # fmt: skip
AUTO = ("AutoModelForCausalLM", "AutoTokenizer")
_HEAD = struct.Struct("!I")  # bytes of the request that follows
_END = struct.Struct("!idd")  # how a child ended: exit code as of Popen, CPU seconds, MB


class NoServer(Exception):
    """There is no server, or it went away before it said how its child ended."""


@dataclass(frozen=True)
class Call:
    """What a child is to do."""

    module: str  # its function main is called
    words: tuple[str, ...] = ()  # of its command line
    seconds: float = 0.0  # after which the kernel ends it; 0: never
    classes: tuple[str, ...] = ()  # of transformers that it is going to need


@dataclass(frozen=True)
class Setting:
    """How the libraries are set up, which some read once, when they are loaded."""

    level: str = "strict"
    threads: int = 1
    network: bool = False


class Child:
    """A child of the server, to its caller."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def signal(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(OSError):  # it ended, or the server did
            self._connection.send(bytes([number]))

    def kill(self) -> None:
        """End it."""
        self.signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it.

        Raises:
            NoServer: the server ended, and the child with it.
        """
        told = b""
        while len(told) < _END.size:  # after Ctrl-C it may be asked for a second time
            try:
                more = self._connection.recv(_END.size - len(told))
            except OSError as error:
                raise NoServer(f"it went away: {error}") from error
            if not more:
                raise NoServer("it ended before its child")
            told += more
        self._connection.close()
        code, seconds, megabytes = _END.unpack(told)
        usage.add(seconds, megabytes)
        return int(code)


# --- the caller -----------------------------------------------------------------------------


def wanted() -> bool:
    """Whether the jobs of this run share a load, and this machine can fork and watch processes."""
    return sys.platform == "linux" and bool(os.environ.get(VARIABLE))


def start(call: Call, setting: Setting, streams: Sequence[int]) -> Child:
    """Have a child of the run's server do something.

    Args:
        call: what.
        setting: how the libraries are set up for it.
        streams: its standard input, output and error.

    Raises:
        NoServer: nothing was started.
    """
    request = {
        **asdict(call),
        "folder": os.getcwd(),
        "variables": {k: v for k, v in os.environ.items() if k not in (VARIABLE, usage.FILE)},
        "mask": _umask(),
    }
    try:
        connection = _connect(setting)
        with contextlib.ExitStack() as on_failure:
            on_failure.enter_context(connection)
            connection.settimeout(ANSWER)
            if connection.recv(1) != b"!":
                raise NoServer("it ended")
            connection.settimeout(None)
            data = json.dumps(request).encode("utf-8", "surrogateescape")
            socket.send_fds(connection, [_HEAD.pack(len(data))], list(streams))
            connection.sendall(data)
            on_failure.pop_all()
    except (OSError, ValueError) as error:
        raise NoServer(str(error)) from error
    return Child(connection)


def relay(words: Sequence[str], setting: Setting) -> int | None:
    """Run a command line of this package in a child; its exit code, or nothing: run it here.

    A signal that ends the child ends this process too, so that the shell sees the same.
    """
    try:
        child = start(Call("invarlock.__main__", tuple(words)), setting, (0, 1, 2))
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.signal(signal.SIGINT)  # it says so itself
            code = child.wait()
    except NoServer as error:
        tell(error)
        return None
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def tell(error: NoServer) -> None:
    """Say that a job loads for itself, which costs time and nothing else."""
    print(f"one load: in a process of its own: {error}", file=sys.stderr, flush=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _connect(setting: Setting) -> socket.socket:
    """A connection to the run's server, which is started where there is none."""
    workflow = int(os.environ[VARIABLE])
    place = _folder() / _key(setting, workflow)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_failure:
        on_failure.enter_context(connection)
        with _locked(place):
            try:
                connection.connect(str(place))
            except (FileNotFoundError, ConnectionRefusedError):
                _start_server(place, setting, workflow)
                connection.connect(str(place))
        if _uid_of_peer(connection) != os.getuid():
            raise NoServer("it belongs to somebody else")
        on_failure.pop_all()
    return connection


def _start_server(place: Path, setting: Setting, workflow: int) -> None:
    """Start a server that listens at once, and answers when it has loaded the libraries."""
    place.unlink(missing_ok=True)  # of one that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen(128)
        given = {"place": str(place), "workflow": workflow, **asdict(setting)}
        number = str(listener.fileno())
        with open(place.with_suffix(".log"), "ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", __name__, number, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )


def _folder() -> Path:
    """Where the sockets of the user's servers are; nobody else gets there."""
    name = f"invarlock-load-{os.getuid()}"
    folder = Path(tempfile.gettempdir()) / name
    if len(os.fsencode(folder)) + 40 > LONGEST:
        folder = Path("/tmp") / name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NoServer(f"{folder} is not this user's alone")
    return folder


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One at a time, for an instant: whoever starts a server, connects to one, or is one that ends.

    The file stays: a lock on a file that somebody removes locks nobody out.
    """
    with open(place.parent / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _uid_of_peer(connection: socket.socket) -> int:
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", told)[1])


def _key(setting: Setting, workflow: int) -> str:
    """A name for what a process takes over from the one that starts it, and for what it loads."""
    variables = {name: text for name, text in os.environ.items() if name not in OF_A_JOB}
    limits = {name: resource.getrlimit(getattr(resource, name))
              for name in dir(resource) if name.startswith("RLIMIT_")}  # fmt: skip
    found = [
        asdict(setting), sys.executable, sys.version, os.getcwd(),
        workflow, started(workflow), sorted(variables.items()), os.getuid(), os.getgroups(),
        limits, sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0),
        # of another container or of another SLURM job, also where these share a folder
        Path("/proc/self/cgroup").read_text(),
        [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "user", "net")],
        state_of_code(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(found).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def state_of_code(package: Path = PACKAGE) -> list[list[object]]:
    """Name, size and time of the package's modules and data."""
    found: list[list[object]] = []
    for folder, _, names in os.walk(package):
        if not folder.endswith("__pycache__"):
            for name in names:
                stat = os.stat(path := os.path.join(folder, name))
                found.append([path, stat.st_size, stat.st_mtime_ns])
    return sorted(found)


# --- the server -----------------------------------------------------------------------------


class Server:
    """Forks children until the run ends or nobody asks any more."""

    def __init__(self, listener: socket.socket, place: Path, workflow: int) -> None:
        self.listener, self.place = listener, place
        self.code = state_of_code()
        self.children: dict[int, socket.socket] = {}  # by the descriptor that tells their end
        self.pids: dict[int, int] = {}
        self.watching = selectors.DefaultSelector()
        self.watching.register(listener, selectors.EVENT_READ, self._accept)
        self.workflow = os.pidfd_open(workflow)
        self.watching.register(self.workflow, selectors.EVENT_READ, self._close)
        self.listening = True
        self.billed = 0.0  # CPU seconds of loading that were told to a caller
        self.classes: set[str] = set()  # that were loaded for callers
        self.variables: dict[str, str] = {}  # that the libraries set where they are loaded
        self.mine: socket.socket | None = None  # a child's connection

    def serve(self) -> dict[str, Any] | None:
        """Answer callers. In a child, what it is to do; in the server, nothing, when it is over."""
        last = time.monotonic()
        while self.listening or self.children:
            for key, _ in self.watching.select(TICK):
                if (request := key.data()) is not None:
                    return dict(request)
            if self.children:
                last = time.monotonic()
            elif time.monotonic() - last > IDLE:
                self._close(unless_called=True)
            if self.listening and self._changed():
                self._close()
        return None

    def _changed(self) -> bool:
        try:
            return state_of_code() != self.code
        except OSError:  # it is being removed
            return True

    def _close(self, unless_called: bool = False) -> None:
        """Answer nobody any more."""
        with contextlib.suppress(OSError), _locked(self.place):
            with selectors.SelectSelector() as waiting:
                waiting.register(self.listener, selectors.EVENT_READ)
                if unless_called and waiting.select(0):
                    return
            self.place.unlink(missing_ok=True)
            self.place.with_suffix(".log").unlink(missing_ok=True)
        if self.listening:
            self.watching.unregister(self.listener)
            self.watching.unregister(self.workflow)
            self.listener.close()
            self.listening = False

    def _accept(self) -> dict[str, Any] | None:
        """Fork for a caller; the request, in the child."""
        connection, _ = self.listener.accept()
        with contextlib.ExitStack() as at_end:
            at_end.enter_context(connection)
            if _uid_of_peer(connection) != os.getuid():
                return None
            try:
                connection.settimeout(READING)
                connection.sendall(b"!")
                head, streams, _, _ = socket.recv_fds(connection, _HEAD.size, 3)
                for number in streams:
                    at_end.callback(os.close, number)
                if len(streams) != 3:
                    raise ValueError(f"{len(streams)} streams")
                request = json.loads(_read(connection, _HEAD.unpack(head)[0]))
                if more := set(request["classes"]) - self.classes:
                    self.variables |= _load(more)
                    self.classes |= more
                request["variables"] = self.variables | request["variables"]
                server, pid = os.getpid(), os.fork()
            except (
                OSError,
                RuntimeError,
                ValueError,
                struct.error,
            ) as error:  # the caller is told by the end
                print(f"not answered: {error}", file=sys.stderr, flush=True)
                return None
            if pid == 0:
                at_end.pop_all()
                self._leave(connection)
                _become(request, streams, server)
                return dict(request)
            connection.settimeout(None)
            end = os.pidfd_open(pid)
            self.children[end], self.pids[end] = connection, pid
            self.watching.register(end, selectors.EVENT_READ, lambda: self._ended(end))
            self.watching.register(connection, selectors.EVENT_READ, lambda: self._told(end))
            at_end.pop_all()
            for number in streams:
                os.close(number)
        return None

    def _leave(self, mine: socket.socket) -> None:
        """Let go, in a child, of everything that is the server's: a connection of another caller,
        too, would keep that from seeing its end. The child keeps its own open."""
        self.mine = mine
        self.watching.close()
        self.listener.close()
        os.close(self.workflow)
        for end, connection in self.children.items():
            os.close(end)
            connection.close()

    def _told(self, end: int) -> None:
        """A caller sends a signal, or is gone."""
        try:
            told = self.children[end].recv(1)
        except OSError:
            told = b""
        # the process is there as long as nobody has waited for it, which _ended does
        os.kill(self.pids[end], told[0] if told else signal.SIGKILL)
        if not told:
            self.watching.unregister(self.children[end])

    def _ended(self, end: int) -> None:
        """Tell the caller how its child ended, and what it took."""
        connection = self.children.pop(end)
        _, status, used = os.wait4(self.pids.pop(end), 0)
        self.watching.unregister(end)
        os.close(end)
        with contextlib.suppress(KeyError):
            self.watching.unregister(connection)
        own = resource.getrusage(resource.RUSAGE_SELF)
        loading = own.ru_utime + own.ru_stime - self.billed
        self.billed += loading
        seconds = used.ru_utime + used.ru_stime + loading
        code = os.waitstatus_to_exitcode(status)
        with connection, contextlib.suppress(OSError):
            connection.sendall(_END.pack(code, seconds, used.ru_maxrss / 1024))


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ValueError("the caller went away")
        data += more
    return bytes(data)


def _load(classes: Iterable[str]) -> dict[str, str]:
    """Load what children need: the libraries, and classes of transformers, which loads late.

    Returns:
        The variables that the libraries set.
    """
    before = dict(os.environ)
    for name in LIBRARIES:
        importlib.import_module(name)
    transformers = sys.modules["transformers"]
    for name in classes:
        # what a class cannot be loaded for, the child says
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            getattr(transformers, name)
    if not _cuda_can_start_in_a_fork():
        raise RuntimeError("loading the libraries has started CUDA, which no fork can use then")
    gc.collect()
    gc.freeze()  # the collector of a child leaves alone, and so shared, what is there
    return {name: text for name, text in os.environ.items() if before.get(name) != text}


def _cuda_can_start_in_a_fork() -> bool:
    """Whether nothing has counted or started devices, as far as a fork of this process sees."""
    if (pid := os.fork()) == 0:
        os._exit(int(sys.modules["torch"].cuda._is_in_bad_fork()))
    return os.waitpid(pid, 0)[1] == 0


def _become(request: Mapping[str, Any], streams: Sequence[int], server: int) -> None:
    """Make this fork the process that the caller would have started."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # it ended before the kernel knew
        os._exit(1)
    os.setpgid(0, 0)
    for number, given in enumerate(streams):
        os.dup2(given, number)
        if given > 2:
            os.close(given)
    os.chdir(request["folder"])
    os.umask(request["mask"])
    os.environ.clear()
    os.environ.update(request["variables"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT
                      else signal.SIG_DFL)  # fmt: skip
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    sys.modules["numpy"].random.seed()  # as these are in a new process
    sys.modules["torch"].default_generator.seed()
    sys.argv = [request["module"], *request["words"]]


def main(words: Sequence[str]) -> NoReturn:
    """Load, then fork; a child ends here too, as a program does."""
    listener = socket.socket(fileno=int(words[0]))
    given = json.loads(words[1])
    server = Server(listener, Path(given["place"]), given["workflow"])
    set_environment(given["level"], given["threads"], given["network"])
    server.variables = _load(AUTO)
    if (request := server.serve()) is None:
        os._exit(0)  # nothing is left to be done, and to take the libraries apart takes a while
    raise SystemExit(importlib.import_module(request["module"]).main())


if __name__ == "__main__":
    main(sys.argv[1:])
