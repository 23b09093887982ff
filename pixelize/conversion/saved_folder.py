"""The two files of a saved folder, which change together although no file system can replace two at once.

``pixelize.json`` holds the checksum of the weights that belong to it, and replacing it is the one step that
makes a save count. Before it the new weights lie beside the old under a name made of their checksum, after it
they take the lasting name. Whoever looks in between, or after a crash in between, finds them under either.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelize.conversion.saved_plan import LARGEST, PLAN, SavedPlan, parse
from pixelize.errors import LoadError
from pixelize.files import make_public, write_text

WEIGHTS = "model.safetensors"
ATTEMPTS = 1000
"""How often a folder that is saved anew while it is read is read again."""
Shapes = dict[str, tuple[tuple[int, ...], str]]
"""What a weights file says it holds, by name: shape, and type as safetensors spells it."""


def write(folder: Path, tensors: dict[str, Tensor], plan_text: Callable[[str], str]) -> None:
    """Makes ``folder`` hold ``tensors`` and the plan ``plan_text`` gives for their file's checksum.

    Until the plan is replaced the folder is what it was, from then on what it is to be, whatever happens to
    this process. What interrupted saves left behind is removed. Saves to one folder wait for each other.

    Raises OSError if the disk refuses.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        try:
            part = folder / f".model-{secrets.token_hex(8)}.part"
            try:
                save_file(tensors, part, metadata={"format": "pt"})
            except SafetensorError as error:  # a full disk, say
                raise OSError(f"{folder}: {WEIGHTS} could not be written ({error})") from error
            make_public(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
                checksum = _sha256(file)
            os.replace(part, folder / _waiting(checksum))
            write_text(folder / PLAN, plan_text(checksum))
        finally:
            _settle(folder)
            if made:
                with suppress(OSError):  # not empty: all went well
                    folder.rmdir()


class SavedAnewError(LoadError):
    """A folder was saved anew while it was read: reading it again is all there is to do."""


class SavedFiles(AbstractContextManager["SavedFiles"]):
    """A folder's plan and the weights that belong to it, opened together.

    Raises LoadError if a file is missing, no file at all, a link out of the folder, or no plan.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for _ in range(ATTEMPTS):
            self._plan_file = _identity(_regular(folder, PLAN))
            self.plan: SavedPlan = read_plan(folder)
            # in this order: the name changes from the first to the second, never back
            for name in (_waiting(self.plan.sha256), WEIGHTS):
                self.weights = folder / name
                try:
                    self._file: BinaryIO = _regular(folder, name).open("rb")
                    break
                except (OSError, LoadError) as error:
                    problem = error
            else:
                if not self._is_plan_there():
                    continue  # saved anew meanwhile
                raise problem if isinstance(problem, LoadError) else LoadError(f"{folder}: {problem}")
            if self._is_plan_there():
                return
            self._file.close()
        raise LoadError(f"{folder}: it is being saved all the time")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises SavedAnewError in place of what these files led to if they are no longer the folder's."""
        outdated = kind is not None and issubclass(kind, Exception) and not self._is_current()
        self._file.close()
        if outdated:
            raise SavedAnewError(f"{self.folder}: it was saved anew while it was read")

    def _is_current(self) -> bool:
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.weights))
        except OSError:
            return False
        return same and self._is_plan_there()

    def shapes(self) -> Shapes:
        """What the weights file says it holds; no tensor is read. Raises LoadError."""
        try:
            with safe_open(self.weights, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{self.weights}: not a readable safetensors file ({error})") from error

    def tensors(self) -> dict[str, Tensor]:
        """The weights, read after their checksum. Raises LoadError."""
        if _sha256(self._file) != self.plan.sha256:
            raise LoadError(
                f"{self.folder}: {self.weights.name} is not the file that {PLAN} was written with (damaged, "
                "or put there since); save again"
            )
        try:
            tensors = load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{self.weights}: not a readable safetensors file ({error})") from error
        if not self._is_current():  # or the tensors may be another file's than the checksum was
            raise LoadError(f"{self.folder}: it was saved anew while it was read")
        return tensors

    def _is_plan_there(self) -> bool:
        try:
            return _identity(self.folder / PLAN) == self._plan_file
        except OSError:
            return False


def read_plan(folder: Path) -> SavedPlan:
    """The checked contents of ``pixelize.json``. Raises LoadError."""
    try:
        with _regular(folder, PLAN).open("rb") as file:
            return parse(file.read(LARGEST + 1), str(folder))
    except OSError as error:
        raise LoadError(f"{folder}/{PLAN}: not readable ({error})") from error


def _regular(folder: Path, name: str) -> Path:
    """The path of a file in ``folder``. Raises LoadError unless it is one, and no link to somewhere else.

    A hub's cache holds links into its own folder of blobs, which are followed.
    """
    path = folder / name
    try:
        kind = os.stat(path).st_mode
    except OSError:
        raise LoadError(f"{folder}: {name} is missing; is it a folder that pixelize.save wrote?") from None
    if not stat.S_ISREG(kind):
        raise LoadError(f"{path}: not a regular file")
    target, inside = path.resolve(), folder.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else inside
    if target.parent not in (inside, blobs):
        raise LoadError(f"{path}: a link to {target}, out of the folder; copy the file instead")
    return path


def _identity(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _waiting(checksum: str) -> str:
    """Where weights lie until they have the lasting name."""
    return f".model-{checksum}.safetensors"


def _settle(folder: Path) -> None:
    """Gives the weights that the plan names the lasting name, and removes what else saves left."""
    named: Any = None
    with suppress(OSError, ValueError, RecursionError):
        named = json.loads((folder / PLAN).read_bytes())
    checksum = named.get("sha256") if isinstance(named, dict) else None
    for path in folder.glob(".model-*"):
        if path.name == _waiting(str(checksum)):
            os.replace(path, folder / WEIGHTS)
        else:
            path.unlink(missing_ok=True)
    for path in folder.glob(f".{PLAN}-*"):
        path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """In this no other process or thread saves to ``folder``, where the system has locks for that."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    opened = _Opened()
    handle = os.open(folder, os.O_RDONLY)
    # closed at the latest when nothing refers to it any more: an interrupt leaves no lock behind
    close = weakref.finalize(opened, os.close, handle)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        close()


class _Opened:
    """What a folder that is opened to be locked lives as long as."""


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()
