"""Where documents come from: a subset of a local folder or of an object store, listed and read through fsspec.

Everything here blocks on files and sockets: call it from a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import fsspec
import fsspec.core
import msgspec

from headway.domain.lake import check_url, find_secrets
from headway.errors import ChangedDocumentError, ConfigurationError, HeadwayError, LakeError, UnreadableDocumentError
from headway.lake.globs import Globs, State

Entry = Mapping[str, Any]

_SCHEMES: Mapping[str, str] = {"file": "", "s3": "s3", "abfs": "azure", "abfss": "azure", "memory": ""}
_PATH_BYTES = 2000  # PostgreSQL keeps 2,700 in an index
_SHOWN_CHARACTERS = 200
_REFUSALS = re.compile(r"Credential|Authenticat|Authoriz|Unauthorized|Forbidden|Permission|AccessDenied")


class Source(msgspec.Struct, frozen=True):
    """A subset of a data lake, as it is configured.

    Attributes:
        url: The root: ``file:/folder`` (``file:./folder`` from the working directory), ``s3://bucket/folder``,
            ``abfs://container@account.dfs.core.windows.net/folder``; ``memory://folder`` in tests.
        include, exclude: Patterns (``headway.lake.globs``); a document matches an include and no exclude.
        prefix: What its path must begin with.
        modified_since: Only what was modified then or later; aware.
        options: Keywords for the fsspec file system (``endpoint_url``, ``account_name``, ``anon``); never a secret.
        secrets: Keywords whose values are secrets, each as a reference (``env:NAME``, ``file:/path``).
    """

    url: str
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    prefix: str = ""
    modified_since: datetime | None = None
    options: dict[str, Any] = {}
    secrets: dict[str, str] = {}


class LakeObject(msgspec.Struct, frozen=True):
    """One listed file.

    Attributes:
        path: From the lake's root, with slashes.
        size: Bytes.
        modified: ISO 8601, UTC; empty where the lake does not tell.
        etag: Changes whenever the content does: the store's etag, or made of inode and times of a local file.
    """

    path: str
    size: int
    modified: str
    etag: str


class Skipped(msgspec.Struct, frozen=True):
    """A path that matches the patterns and cannot be a document, and why."""

    path: str
    reason: str


class Lake:
    """Lists and reads one source; made by :func:`open_lake`. Several threads may read at once."""

    def __init__(self, source: Source, files: Any, root: str, secrets: tuple[str, ...] = ()) -> None:
        self._source = source
        self._files = files
        self._local = source.url.startswith("file:")
        self._root = os.path.realpath(root) if self._local else root.rstrip("/")
        self._secrets = secrets
        self._globs = Globs(source.include, source.exclude)

    def walk(self) -> Iterator[LakeObject | Skipped]:
        """List the subset in the order of its paths, one folder in memory at a time.

        Links of a local folder are followed to files inside the root, not to folders and not out of the root.

        Raises:
            LakeError: The root is missing or no file matches, a folder cannot be listed, or the lake is away.
        """
        self._check_root()
        found = False
        for path, state, entry in self._entries_below():
            listed = self._listed(path, state, entry)
            if isinstance(listed, LakeObject):
                if not self._is_recent(listed):
                    continue
                found = True
            if listed is not None:
                yield listed
        if not found:
            raise LakeError(self._nothing(), code="lake_empty")

    def look(self, path: str) -> LakeObject:
        """List one file anew.

        Raises:
            ChangedDocumentError: It is gone.
            UnreadableDocumentError: It may not be read, or is not a file inside the root.
            LakeError: The lake is away, or refuses the credentials.
        """
        try:
            return self._look(path)
        except HeadwayError:
            raise
        except Exception as error:
            raise self._failure(error, path) from error

    def read(self, listed: LakeObject, limit_bytes: int) -> bytes:
        """Read a file as it was listed.

        Raises:
            ChangedDocumentError: It changed after it was listed, or is gone.
            UnreadableDocumentError: It is larger than ``limit_bytes``, or may not be read.
            LakeError: The lake is away, or refuses the credentials.
        """
        if listed.size > limit_bytes:
            message = f"has {listed.size:,} bytes; at most {limit_bytes:,} are read"
            raise UnreadableDocumentError(message, code="document_too_large")
        try:
            if self._local:  # what has become a pipe must not be opened
                self._confirm(listed)
            body: bytes = (
                self._files.cat_file(self._full(listed.path), start=0, end=limit_bytes + 1) if listed.size else b""
            )
            self._confirm(listed)
        except HeadwayError:
            raise
        except Exception as error:
            raise self._failure(error, listed.path) from error
        if len(body) != listed.size:
            raise ChangedDocumentError(f"has {len(body):,} bytes; {listed.size:,} were listed")
        return body

    # --- listing ---

    def _entries_below(self) -> Iterator[tuple[str, State, Entry | None]]:
        """All that is not a folder in the folders that may hold the subset, and links; None for an impossible name."""
        base = self._globs.base
        folders = [self._entries(base, self._globs.read(base.split("/")) if base else self._globs.start())]
        while folders:
            for path, state, entry in folders[-1]:
                if entry is None or entry["type"] != "directory" or entry.get("islink"):
                    yield path, state, entry
                elif self._globs.may_hold(state) and self._may_begin(path + "/"):
                    folders.append(self._entries(path, state))
                    break
            else:
                folders.pop()

    def _may_begin(self, folder: str) -> bool:
        prefix = self._source.prefix
        return folder.startswith(prefix) or prefix.startswith(folder)

    def _entries(self, folder: str, state: State) -> Iterator[tuple[str, State, Entry | None]]:
        full = self._full(folder)
        try:
            listing = self._files.ls(full, detail=True)
        except FileNotFoundError:  # went while others were listed, or the patterns begin below what there is
            self._check_root()
            return
        except Exception as error:
            message = f"folder {folder or '.'} of {self._source.url} cannot be listed: {self._text(error)}"
            raise LakeError(f"{message}; grant access, or exclude it", code=_code(error)) from error
        above = full.rstrip("/") + "/"
        named: dict[str, tuple[str, Entry]] = {}  # some stores name a folder twice: as such, and by an empty file
        for entry in listing:
            name = entry["name"].removeprefix(above).removesuffix("/")
            is_folder = entry["type"] == "directory"
            if (name or is_folder) and entry["name"].startswith(above):
                # A folder's files come where its name with a slash stands among the paths.
                named[name + "/" if is_folder else name] = name, entry
        for key in sorted(named):
            name, entry = named[key]
            path = f"{folder}/{name}" if folder else name
            possible = name not in ("", ".", "..") and "/" not in name and _is_text(name)
            yield path if name else path + "/", self._globs.step(state, name), entry if possible else None

    def _listed(self, path: str, state: State, entry: Entry | None) -> LakeObject | Skipped | None:
        if not path.startswith(self._source.prefix):
            return None
        if entry is None:
            return Skipped(_shown(path), "its name cannot be a path: empty, . or .. between slashes, or not UTF-8")
        if entry.get("islink"):
            target = os.path.realpath(self._full(path))
            if self._files.isdir(target):
                reason = "is a link to a folder: those are not followed"
                return Skipped(path, reason) if self._globs.may_hold(state) else None
        if not self._globs.accepts(state):
            return None
        if len(path.encode()) > _PATH_BYTES:
            return Skipped(_shown(path), f"its path has {len(path.encode()):,} bytes; at most {_PATH_BYTES:,} are read")
        try:
            return self.look(path) if entry.get("islink") else _describe(path, entry)
        except ChangedDocumentError:
            return Skipped(path, "is a link that leads nowhere")
        except UnreadableDocumentError as error:
            return Skipped(path, error.message)

    def _is_recent(self, listed: LakeObject) -> bool:
        since = self._source.modified_since
        return since is None or (listed.modified != "" and datetime.fromisoformat(listed.modified) >= since)

    def _nothing(self) -> str:
        source = self._source
        if not self._files.ls(self._root):
            return f"{source.url} is empty"
        parts = [f"include {', '.join(source.include)}"]
        parts += [f"exclude {', '.join(source.exclude)}"] if source.exclude else []
        parts += [f"prefix {source.prefix}"] if source.prefix else []
        parts += [f"modified since {source.modified_since.isoformat()}"] if source.modified_since else []
        return f"no file of {source.url} matches: {'; '.join(parts)}"

    # --- one file ---

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _look(self, path: str) -> LakeObject:
        full = self._full(path)
        if self._local:
            full = os.path.realpath(full)
            if os.path.commonpath([full, self._root]) != self._root:
                raise UnreadableDocumentError("is a link to a place outside the lake")
        try:
            entry = self._files.info(full)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno != errno.ELOOP:
                raise
            self._check_root()
            raise ChangedDocumentError("is gone since it was listed", code="document_gone") from error
        return _describe(path, entry)

    def _confirm(self, listed: LakeObject) -> None:
        now = self._look(listed.path)
        if (now.etag, now.size) != (listed.etag, listed.size):
            raise ChangedDocumentError("changed after it was listed")

    # --- failures ---

    def _check_root(self) -> None:
        try:
            kind = self._files.info(self._root)["type"]
        except FileNotFoundError as error:
            raise LakeError(f"there is no {self._source.url}", code="lake_missing") from error
        except Exception as error:
            raise self._away(error) from error
        if kind != "directory":
            raise LakeError(
                f"{self._source.url} is a file: name its folder, and the file under include", code="lake_missing"
            )

    def _failure(self, error: Exception, path: str) -> HeadwayError:
        """What a failed read means: for this file alone, where the rest of the lake still answers."""
        self._check_root()
        if isinstance(error, FileNotFoundError):
            return ChangedDocumentError("is gone since it was listed", code="document_gone")
        if _code(error) == "lake_forbidden":
            return UnreadableDocumentError(f"may not be read: {self._text(error)}")
        return LakeError(f"{path} of {self._source.url} cannot be read: {self._text(error)}")

    def _away(self, error: Exception) -> LakeError:
        if _code(error) == "lake_forbidden":
            message = f"{self._source.url} refuses the credentials: {self._text(error)}"
            return LakeError(message, code="lake_forbidden")
        return LakeError(f"{self._source.url} cannot be reached: {self._text(error)}")

    def _text(self, error: Exception) -> str:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def open_lake(source: Source, read_secret: Callable[[str], str]) -> Lake:
    """Make the lake of a source; nothing is read from it yet.

    Args:
        source: What to list.
        read_secret: Gives the secret that a reference names.

    Raises:
        ConfigurationError: The URL, a pattern, an option or a secret is wrong, or an extra is not installed.
    """
    scheme = source.url.partition(":")[0]
    try:
        if scheme != "memory":
            check_url(source.url)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    for name in find_secrets(source.options):
        raise ConfigurationError(f"lake option {name} is a secret: give it under secrets, as env:NAME or file:/path")
    secrets = {name: read_secret(reference) for name, reference in source.secrets.items()}
    options = {**source.options, **secrets, "skip_instance_cache": True, "use_listings_cache": False}
    try:
        files, root = fsspec.core.url_to_fs(source.url, **options)
    except ImportError as error:
        extra = _SCHEMES[scheme]
        raise ConfigurationError(f"{scheme}:// needs the {extra} extra: pip install 'headway[{extra}]'") from error
    except (TypeError, ValueError) as error:
        # Without the cause: it may quote a secret.
        raise ConfigurationError(f"the options of {source.url} do not fit ({type(error).__name__})") from None
    return Lake(source, files, root, tuple(secrets.values()))


def _shown(path: str) -> str:
    """Write a path that no document can have: distinct from all others, and from those of documents by its ``./``."""
    shown = path.replace("\\", r"\\").replace("\0", r"\0").encode("utf-8", "backslashreplace").decode()
    if len(shown) > _SHOWN_CHARACTERS:
        digest = hashlib.sha256(shown.encode()).hexdigest()[:16]
        shown = f"{shown[:_SHOWN_CHARACTERS]}…{digest}"
    return f"./{shown}"


def _describe(path: str, entry: Entry) -> LakeObject:
    if entry["type"] != "file":
        raise UnreadableDocumentError("is not a file")
    etag = entry.get("ETag") or entry.get("etag")
    if not etag:
        etag = "-".join(str(_seconds(entry[name])) for name in ("ino", "mtime", "created") if name in entry)
    moments = (_seconds(entry.get(name)) for name in ("mtime", "LastModified", "last_modified", "created"))
    modified = next((moment for moment in moments if moment is not None), None)
    shown = "" if modified is None else datetime.fromtimestamp(modified, UTC).isoformat()
    return LakeObject(path, int(entry["size"]), shown, str(etag).strip('"'))


def _seconds(moment: Any) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _code(error: Exception) -> str:
    return "lake_forbidden" if _is_refusal(error) else "lake_unavailable"


def _is_refusal(error: BaseException | None) -> bool:
    """Say whether the lake refuses, by the kind of the error and its HTTP status: its text may name any file."""
    while error is not None:
        if isinstance(error, PermissionError) or _REFUSALS.search(type(error).__name__) or _status(error) in (401, 403):
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> Any:
    """The HTTP status of an error of Azure's client, of aiohttp's or of botocore's; None of any other."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return told or getattr(error, "status_code", None) or getattr(error, "status", None)
