"""How much disk a run still writes, and whether it is there.

For each model: what is missing of its download, its copy, and the null edit of its calibration;
and the edited checkpoints: all of them where they are kept, else one, the largest. Bytes are the
real ones where they are known, and what the run's folder already holds is not counted again. A
model of which nobody said how large it is counts once it is pinned: nothing is refused on a guess.

An edited checkpoint lives until its evaluations have run. Where not all fit side by side the run
is ``tight``: edits are made one after another, and each waits for its place (``await_room``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock import contracts
from invarlock.documents.model_revisions import ModelRevisions, Pin
from invarlock.errors import InputError
from invarlock.files import (
    free_bytes,
    leftovers,
    read_json_object,
    remove_leftovers,
    write_json,
)
from invarlock.formats.kinds import format_of
from invarlock.models import Model
from invarlock.scenarios import CUSTOM_SPEC, Scenario
from invarlock.sources.hub_cache import cache_folder
from invarlock.sources.pins import read_revisions
from invarlock.sources.spec import parse_model_source

if TYPE_CHECKING:
    from invarlock.config import Settings

SCHEMA = "invarlock/disk-plan-v1"
PLAN_NAME = "disk.json"  # in the state folder of a run
POLL = 0.5  # seconds between two looks at the disk
SUBJECTS = "edited checkpoint"  # what of a need; they come and go, so no file ends it


@dataclass(frozen=True)
class SpaceNeed:
    """Bytes that a model still needs, ``count`` times; the file ``done`` ends the need."""

    model: str  # folder name
    what: str
    bytes: int
    count: int = 1
    done: str = ""  # relative to the run's folder


@dataclass(frozen=True)
class Plan:
    """What a run still writes beside its folder, and what must stay free there."""

    needs: tuple[SpaceNeed, ...]
    free_bytes: int
    min_free_bytes: int
    keep_subjects: bool

    @property
    def least(self) -> list[SpaceNeed]:
        """The needs without which the run cannot end: one subject will do if none is kept."""
        subjects = [need for need in self.needs if need.what == SUBJECTS]
        if subjects and not self.keep_subjects:
            subjects = [replace(max(subjects, key=lambda need: need.bytes), count=1)]
        return [need for need in self.needs if need.what != SUBJECTS] + subjects

    @property
    def tight(self) -> bool:
        """Whether not all subjects fit at once, so that they have to take turns."""
        return total_bytes(self.needs) + self.min_free_bytes > self.free_bytes

    def refusal(self, out: Path) -> InputError | None:
        """The line for a run that cannot end; None where nothing is missing."""
        needed = total_bytes(self.least)
        if not needed or needed + self.min_free_bytes <= self.free_bytes:
            return None
        models = dict.fromkeys(need.model for need in self.least)
        sums = [
            f"{model}: "
            + " + ".join(
                f"{n.what} " + (f"{n.count} x " if n.count > 1 else "") + _gb(n.bytes)
                for n in self.least
                if n.model == model and n.bytes
            )
            for model in models
        ]
        return _no_room(out, f"{_gb(needed)} ({'; '.join(sums)})", self)


def total_bytes(needs: Iterable[SpaceNeed]) -> int:
    """Bytes of all needs."""
    return sum(need.bytes * need.count for need in needs)


def plan_disk(settings: Settings) -> Plan:
    """What the run of ``settings`` still writes; cheap enough for every start.

    What killed writers left counts as free: a start removes it.

    Raises:
        InputError: ``state/model_revisions.json`` or a ``baseline.json`` is damaged.
    """
    pins = known_pins(settings.out)
    return Plan(
        tuple(need for model in settings.models for need in _needs(settings, model, pins)),
        free_bytes(settings.out.absolute()) + sum(map(_held_bytes, half_written(settings.out))),
        int(settings.min_free_disk_gb * 1e9),
        bool(settings.values["keep_subjects"]),
    )


def half_written(out: Path) -> list[Path]:
    """Checkpoints and other files that killed writers of this machine left in a run's folder."""
    return [left for folder in out.glob("*/[!.]*") for left in leftovers(folder)]


def _held_bytes(path: Path) -> int:
    """Bytes that are free once ``path`` is gone: not those that have another name elsewhere."""
    try:
        files = [f.lstat() for f in (path, *path.rglob("*")) if not f.is_dir()]
    except FileNotFoundError:  # another start is removing it
        return 0
    return sum(f.st_blocks * 512 for f in files if f.st_nlink == 1)


def known_pins(out: Path) -> ModelRevisions | None:
    """The pins of an earlier start, or None.

    Raises:
        InputError: the file is damaged or names a gated or private model.
    """
    path = out / "state/model_revisions.json"
    return read_revisions(path) if path.is_file() else None


def model_bytes(settings: Settings, model: Model, pins: ModelRevisions | None) -> int:
    """Bytes of a model's folder: as recorded, else as pinned, as counted, or as planned."""
    known = known_bytes(settings, model, pins)
    return int(model.weights_gb * 1e9) if known is None else known


def known_bytes(settings: Settings, model: Model, pins: ModelRevisions | None) -> int | None:
    """The same, but None where the plan is only the default of models that nobody listed."""
    record = settings.out / model.slug / "baseline.json"
    if record.is_file():
        return int(read_json_object(record)["total_bytes"])
    pin = pins.models.get(model.model_id) if pins else None
    known = parse_model_source(model.source).known_bytes(pin)
    if known is None and model.is_measured:
        return int(model.weights_gb * 1e9)
    return known


def _needs(settings: Settings, model: Model, pins: ModelRevisions | None) -> Iterator[SpaceNeed]:
    home, name = settings.out / model.slug, model.slug
    pending = [s for s in settings.scenarios if not _is_evaluated(settings, home, s)]
    if not pending:
        return
    size = known_bytes(settings, model, pins)
    if size is None:  # the jobs that write look for themselves
        return
    if not (home / "baseline.json").exists():
        pin = pins.models.get(model.model_id) if pins else None
        source = parse_model_source(model.source)
        done = f"{name}/baseline.json"
        storage = str(settings.values["baseline_storage"])
        if device(cache_folder()) == device(settings.out):
            yield SpaceNeed(name, "download", source.download_bytes(pin, size), done=done)
        yield SpaceNeed(name, "baseline", placed_bytes(pin, storage, size), done=done)
    if not (home / "presets/calibration_stats.json").exists():
        yield SpaceNeed(name, "null edit", size, done=f"{name}/presets/calibration_stats.json")
    made = [s for s in pending if s.edit_spec != CUSTOM_SPEC]
    absent = sum(not (home / "models" / s.id).exists() for s in made)
    if absent:
        yield SpaceNeed(name, SUBJECTS, size, absent)


def _is_evaluated(settings: Settings, home: Path, scenario: Scenario) -> bool:
    return all(
        (home / f"reports/{scenario.id}/run_{run}/outcome.json").exists()
        for run in settings.runs(scenario)
    )


def placed_bytes(pin: Pin | None, storage: str, size: int) -> int:
    """Bytes of the baseline folder: none where it only links to its source."""
    form = format_of(pin.files) if pin else None
    rewritten = form is not None and not form.dense
    return 0 if storage == "snapshot_symlink" and not rewritten else size


def device(path: Path) -> int:
    """The file system of a path that may not exist yet."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def require_room(demands: Iterable[tuple[Path, int]], min_free_gb: float) -> None:
    """Refuse what does not fit; demands on one file system are added up.

    Raises:
        InputError: not enough disk.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for folder, size in demands:
        first, total = needed.get(device(folder), (folder, 0))
        needed[device(folder)] = first, total + size
    for folder, size in needed.values():
        plan = Plan(
            (SpaceNeed("", "", size),), free_bytes(folder.absolute()), int(min_free_gb * 1e9), True
        )
        if size + plan.min_free_bytes > plan.free_bytes:
            raise _no_room(folder, f"{_gb(size)} for the model", plan)


def write_plan(out: Path, plan: Plan) -> None:
    """Write ``state/disk.json`` of a run, by which edits wait for their place."""
    path = out / "state" / PLAN_NAME
    document = {
        "schema": SCHEMA,
        "tight": plan.tight,
        "needed_bytes": total_bytes(plan.least),
        **asdict(plan),
    }
    contracts.validate(document, "disk-plan", str(path))
    write_json(path, document)


def read_plan(path: Path) -> Plan:
    """Read ``state/disk.json``.

    Raises:
        InputError: unreadable or against its contract.
    """
    document = read_json_object(path)
    contracts.validate(document, "disk-plan", str(path))
    return Plan(
        tuple(SpaceNeed(**need) for need in document["needs"]),
        document["free_bytes"],
        document["min_free_bytes"],
        document["keep_subjects"],
    )


def await_room(subject: Path, minutes: float) -> None:
    """Wait until the checkpoint folder ``subject`` fits beside everything still to be written.

    Returns at once where the run's folder holds no plan or is not tight, and gives up at once where
    no other subject is there whose end could make room. What killed writers left is removed first.

    Raises:
        InputError: not enough disk.
    """
    out = subject.absolute().parents[2]
    path = out / "state" / PLAN_NAME
    plan = read_plan(path) if path.is_file() else None
    if plan is None or not plan.tight:
        return
    model = subject.absolute().parents[1].name
    size = max((n.bytes for n in plan.needs if n.what == SUBJECTS and n.model == model), default=0)
    end = time.monotonic() + 60 * minutes
    while True:
        remove_leftovers(half_written(out))
        reserved = sum(n.bytes for n in plan.needs if n.done and not (out / n.done).exists())
        free = free_bytes(out)
        if size + reserved + plan.min_free_bytes <= free:
            return
        others = [
            folder
            for folder in out.glob("*/models/[!.]*")  # ids repeat across models
            if folder.name != "baseline" and folder != subject.absolute()
        ]
        if plan.keep_subjects or not others or time.monotonic() > end:
            now = replace(plan, free_bytes=free)
            raise _no_room(out, f"{_gb(size)} for {subject.name}, {_gb(reserved)} for others", now)
        time.sleep(POLL)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _no_room(folder: Path, needed: str, plan: Plan) -> InputError:
    many = any(need.count > 1 for need in plan.needs)
    less = "keep_subjects=false, " if plan.keep_subjects and many else ""
    return InputError(
        "not enough disk",
        where=str(folder),
        expected=f"{needed} and {_gb(plan.min_free_bytes)} left (min_free_disk_gb)",
        found=f"{_gb(plan.free_bytes)} free",
        hint=f"make space, lower min_free_disk_gb, or use {less}fewer models or "
        "baseline_storage=snapshot_symlink",
    )
