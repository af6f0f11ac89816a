"""`--download`: the 19 tasks from the hub into the data folder."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..files.errors import InputError
from ..runs.tasks import SPLITS
from .layout import HUB_DATASET, HUB_SIZE

_NEEDED_BYTES = 10 * 10**9


def download(root: Path, fetch: Callable[[], Path] | None = None, revision: str | None = None) -> list[str]:
    """Fetch the archive (resumed if it was begun before), unpack it under `root`; the names of the folders written.

    fetch: gives the path of the archive; by default it comes from the hub dataset XiN0919/VTAB-1k, at `revision`
    (branch, tag or commit; None: the newest). Task folders that exist are left as they are. Raises InputError when the
    archive cannot be fetched, is damaged, or holds no task.
    """
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if fetch is None and free < _NEEDED_BYTES:
        raise InputError(f"{root} has {free / 1e9:.1f} GB free; the data needs {HUB_SIZE}. Name another --data_root")
    archive = fetch() if fetch else fetch_archive(revision)
    try:
        with zipfile.ZipFile(archive) as opened:
            return unpack(opened, root)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is damaged ({error}); delete it and run --download again") from None


def fetch_archive(revision: str | None = None) -> Path:
    """The dataset's zip archive in the hub's local cache. Raises InputError."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = HfApi().list_repo_files(HUB_DATASET, repo_type="dataset", revision=revision)
        archives = [name for name in names if name.endswith(".zip")]
        if len(archives) != 1:
            raise InputError(
                f"the hub dataset {HUB_DATASET} holds {len(archives)} zip archives, expected one; download it by hand "
                "and unpack it so that <data_root>/cifar/train800.txt exists"
            )
        return Path(hf_hub_download(HUB_DATASET, archives[0], repo_type="dataset", revision=revision))
    except InputError:
        raise
    except Exception as error:  # the hub client raises errors of several libraries; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"could not fetch the hub dataset {HUB_DATASET} ({reason}); check the network and run the command again: "
            "what was fetched so far is kept"
        ) from None


def unpack(archive: zipfile.ZipFile, root: Path) -> list[str]:
    """Write the task folders of `archive` to `root`, each complete or not at all; the names of those written."""
    members = _members_by_task(archive)
    if not members:
        raise InputError(f"{archive.filename} holds no folder with train800.txt and test.txt: not a VTAB-1k archive")
    written = []
    for task, files in members.items():
        if (root / task).exists():
            continue
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{task}-"))
        try:
            for name, target in tqdm(files, desc=f"unpacking {task}", unit="file", leave=False):
                place = temporary / target
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(place, "wb") as out:
                    shutil.copyfileobj(source, out)
            temporary.chmod(0o755)
            temporary.rename(root / task)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        written.append(task)
    return written


def _members_by_task(archive: zipfile.ZipFile) -> dict[str, list[tuple[str, PurePosixPath]]]:
    """Task folder -> (name in the archive, path inside the folder); a task's folder is one that holds its lists."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    folders = {
        PurePosixPath(name).parent
        for name in names
        if PurePosixPath(name).name == f"{SPLITS[0]}.txt" and str(PurePosixPath(name).parent / "test.txt") in names
    }
    members: dict[str, list[tuple[str, PurePosixPath]]] = {f.name: [] for f in sorted(folders) if f.name}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{archive.filename} wants to write outside its folder ({name}); it is not to be trusted")
        for folder in path.parents:
            if folder in folders and folder.name in members:
                members[folder.name].append((name, path.relative_to(folder)))
                break
    return members
