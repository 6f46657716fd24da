"""Writing files so that a kill, a full disk or another process cannot spoil them."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Write a file whole or not at all.

    :param path: of the file
    :yields: a temporary path beside it, to write to; it takes the file's place when the block ends without an error
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp's files are for their owner only; what a user trained should be as readable as any of their files
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def numbered(path: Path) -> Iterator[Path]:
    """Yield a path, and then without end the names that it may have instead: ``<name>-2``, ``<name>-3``, ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def make_new(names: Iterable[Path]) -> Path:
    """
    Make a folder that no other process has made, not even one that does so at the same moment.

    :param names: without an end
    :return: the first of them that was free
    """
    for path in names:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    return path
