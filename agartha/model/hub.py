"""Models of the Hugging Face hub, fetched once, checked, and used offline ever after.

A pulled model is a folder `OWNER--NAME/COMMIT` (with `--FILE` for one GGUF file of many) under the user's cache, with a
manifest of its checksums. It takes that name only when every file's checksum is the hub's; until then it is `.partial`, and
the next pull goes on where the last one stopped. Nothing but `pull` ever opens a connection.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from agartha.core.errors import AgarthaError, CapacityError, CheckpointError, ConfigError
from agartha.core.files import read_json, write_json
from agartha.core.progress import bar
from agartha.model.transfer import fetch

MANIFEST, PREFIX = "agartha-pull.json", "hf:"
NAME = re.compile(r"hf:([\w.-]+)/([\w.-]+?)(?::([\w.-]+\.gguf))?(?:@([\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "LICENSE*",
)  # fmt: skip
WEIGHTS = ("model*.safetensors",)


@dataclass(frozen=True, slots=True)
class HubName:
    """`hf:OWNER/NAME[:FILE.gguf][@REVISION]`, taken apart."""

    owner: str
    name: str
    file: str | None
    revision: str

    @staticmethod
    def of(text: str) -> "HubName":
        """Raises: ConfigError if this is no such name."""
        found = NAME.fullmatch(text)
        if found is None or ".." in text:
            raise ConfigError(
                f"{text!r} names no model of the hub.", hint="write hf:OWNER/NAME[:FILE.gguf][@REVISION]."
            )
        return HubName(found[1], found[2], found[3], found[4] or "main")

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    def shelf(self, cache: Path) -> Path:
        """Where every commit of this model stands."""
        return cache / f"{self.owner}--{self.name}{'--' + self.file if self.file else ''}"


def cache_folder() -> Path:
    return Path(os.environ.get("AGARTHA_CACHE") or Path.home() / ".cache" / "agartha" / "models") / "hub"


def is_offline() -> bool:
    return os.environ.get("AGARTHA_OFFLINE", "").lower() not in ("", "0", "false", "no")


def located(text: str) -> Path:
    """The folder, or the GGUF file in it, of a model that was pulled. Raises: CheckpointError if it was not."""
    name = HubName.of(text)
    shelf = name.shelf(cache_folder())
    commit = name.revision if COMMIT.fullmatch(name.revision) else _pinned(shelf, name.revision)
    folder = shelf / (commit or "")
    if commit is None or not (folder / MANIFEST).exists():
        raise CheckpointError(f"{text} is not on this machine.", hint=f"agartha pull {text}")
    return opened_at(folder)


def opened_at(folder: Path) -> Path:
    """What to open in a pulled folder: its one GGUF file, or the folder itself."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not (folder / "config.json").exists() else folder


def pull(text: str, to: Path | None = None, offline: bool = False) -> Path:
    """Fetch a model of the hub, or go on fetching it; at once if it is here. Returns what `engine.load` opens.

    to: a folder of one's own instead of the cache. Raises: ConfigError when offline or without `huggingface_hub`,
    CheckpointError if the hub refuses or a checksum is wrong, CapacityError if the disk is too small.
    """
    name = HubName.of(text)
    shelf = name.shelf(cache_folder())
    if COMMIT.fullmatch(name.revision) and to is None and (shelf / name.revision / MANIFEST).exists():
        return opened_at(shelf / name.revision)
    if offline or is_offline():
        raise ConfigError(f"{text} cannot be pulled offline.", hint="unset AGARTHA_OFFLINE, leave out --offline.")
    with _hub_errors(text):
        commit, files = _listed(name)
        folder = to or shelf / commit
        if not _is_complete(folder, commit):
            _fetch(name, commit, files, folder)
    if to is None:
        write_json(shelf / "revisions.json", _revisions(shelf) | {name.revision: commit})
    return opened_at(folder)


def _listed(name: HubName) -> tuple[str, dict[str, Any]]:
    """The commit that the revision means now, and the files wanted from it."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if not COMMIT.fullmatch(info.sha or ""):
        raise CheckpointError(f"the hub names no commit for {name.repository}.", hint="is HF_ENDPOINT right?")
    return str(info.sha), {file: files[file] for file in _wanted(name, list(files))}


def _wanted(name: HubName, files: list[str]) -> list[str]:
    """Weights, settings, tokenizer and licence from the top of the repository: no code, no second copy in another format."""
    top = [file for file in files if "/" not in file and "\\" not in file and not file.startswith(".")]
    small = [file for file in top if any(fnmatchcase(file, pattern) for pattern in SMALL)]
    weights = [file for file in top if any(fnmatchcase(file, pattern) for pattern in WEIGHTS)]
    packed = [file for file in top if file.endswith(".gguf")]
    if name.file or (packed and not weights):
        wanted = [file for file in packed if file == name.file or (name.file is None and len(packed) == 1)]
        if len(wanted) != 1:
            raise ConfigError(
                f"{name.repository} holds {len(packed)} GGUF files: {', '.join(packed)[:2000]}.",
                hint=f"name one: hf:{name.repository}:FILE.gguf",
            )
        return wanted + [file for file in small if file.startswith("LICENSE")]
    if not weights or "config.json" not in small:
        raise CheckpointError(f"{name.repository} holds no weights of ours.", hint="safetensors or GGUF are needed.")
    return small + weights


def _fetch(name: HubName, commit: str, files: dict[str, Any], folder: Path) -> None:
    """All files into a sibling folder, each checked, then the folder takes its name."""
    from huggingface_hub import hf_hub_url

    partial = folder.with_name(f"{folder.name}.partial")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty.", hint="name a folder that does not exist.")
    partial.mkdir(parents=True, exist_ok=True)
    total, checksums = sum(file.size or 0 for file in files.values()), {}
    _check_room(partial, total)
    with bar(f"pulling {name.repository}", total, "B") as shown:
        for file, its in files.items():
            if not (partial / file).exists():
                fetch(hf_hub_url(name.repository, file, revision=commit), partial / file, its.size or 0, shown)
            checksums[file] = _checked(partial / file, its)
    manifest = {"repository": name.repository, "revision": name.revision, "commit": commit, "files": checksums}
    write_json(partial / MANIFEST, manifest)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def _checked(path: Path, file: Any) -> dict[str, Any]:
    """Raises: CheckpointError, and removes the file, if its content is not what the hub announced."""
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    size = path.stat().st_size
    if file.lfs is not None:
        found, wanted = sha256, file.lfs.sha256
    else:  # a small file's name in git is the SHA-1 of this
        found, wanted = hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest(), file.blob_id
    if found != wanted:
        path.unlink()
        raise CheckpointError(
            f"{path.name} arrived damaged: its checksum is {found}, the hub's is {wanted}.", hint="pull again."
        )
    return {"size": size, "sha256": sha256}


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free + sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if wanted > free:
        raise CapacityError(
            f"{wanted / 2**30:.1f} GiB are wanted, {free / 2**30:.1f} GiB are free.", "free some disk space"
        )


def _is_complete(folder: Path, commit: str) -> bool:
    return (folder / MANIFEST).exists() and read_json(folder / MANIFEST).get("commit") == commit


def _pinned(shelf: Path, revision: str) -> str | None:
    commit = _revisions(shelf).get(revision)
    return commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else None


def _revisions(shelf: Path) -> dict[str, Any]:
    path = shelf / "revisions.json"
    return read_json(path) if path.exists() else {}


@contextmanager
def _hub_errors(text: str) -> Iterator[None]:
    """Every way in which the hub, the network or the library fails, as an error of ours."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise ConfigError("pulling needs the package huggingface_hub", hint="pip install 'agartha[hf]'") from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{text} asks for a licence to be accepted.", hint="accept it on its page, then `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(f"the hub has no {text}.", hint="check the name and the revision.") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConfigError(
            f"{text} cannot be pulled while HF_HUB_OFFLINE is set.", hint="unset HF_HUB_OFFLINE."
        ) from error
    except AgarthaError:
        raise
    except Exception as error:  # of the network, the hub or the library: the classes are not the same in its versions
        why = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"the hub cannot be reached: {why[0]}",
            hint="what has arrived is kept; the same command goes on from there.",
        ) from error
