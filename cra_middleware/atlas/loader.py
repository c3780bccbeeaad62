"""The only reader of Atlas files. Nothing outside the Atlas's folder is ever opened.

An Atlas is a folder with ``atlas.json``, or one such file alone. Beside it may lie ``policies/*.json`` and
``actions/*.json`` (one entry, a list, or an object with that key; merged in file-name order) and whatever
files the context packs name.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pydantic import JsonValue, ValidationError

from cra_middleware._canonical import digest
from cra_middleware.atlas.findings import Finding, Origins, Place, check, finding, shape_findings
from cra_middleware.atlas.manifest import Manifest
from cra_middleware.errors import AtlasError

MAX_FILE_BYTES = 16 * 1024 * 1024
MANIFEST = "atlas.json"
_MERGED = ("actions", "policies")


@dataclass(frozen=True)
class Atlas:
    """A loaded Atlas: its manifest, the documents it names, and what was noticed on the way."""

    manifest: Manifest
    file: str
    documents: Mapping[str, str]
    """Text by the path that a context pack names it with."""
    findings: tuple[Finding, ...] = ()
    """Warnings; an Atlas with errors is never made."""

    @classmethod
    def load(cls, path: str | Path) -> Atlas:
        """Read and validate a folder or file.

        Raises:
            AtlasError: when anything in it is an error; it carries every finding.
        """
        atlas, findings = inspect(Path(path))
        if atlas is None:
            raise AtlasError(findings)
        return atlas

    @classmethod
    def from_dict(cls, manifest: Mapping[str, JsonValue]) -> Atlas:
        """An Atlas from a manifest in memory; its context packs cannot name files.

        Raises:
            AtlasError: as ``load``.
        """
        atlas, findings = _build(dict(manifest), Origins("<dict>"), "<dict>", None)
        if atlas is None:
            raise AtlasError(findings)
        return atlas

    @cached_property
    def policy_digest(self) -> str:
        """SHA-256 of everything a decision depends on: actions, capabilities, policies and tool maps, as read."""
        keys = {"atlas_id", "version", "actions", "capabilities", "policies", "adapters"}
        read = self.manifest.model_dump(mode="json", include=keys)
        # not canonical(): the keys of a schema may be regular expressions, which the safe profile has no text for
        return digest(json.dumps(read, sort_keys=True, separators=(",", ":")).encode())


def inspect(path: Path) -> tuple[Atlas | None, tuple[Finding, ...]]:
    """The Atlas at ``path`` (None when it has errors) and every finding about it.

    A file that is called ``atlas.json`` stands for its folder: the policies beside it count too.
    """
    findings: list[Finding] = []
    try:
        is_folder = path.is_dir()
        file = path / MANIFEST if is_folder else path
        root = file.parent.resolve()
        if is_folder and not file.exists():
            return None, (_no_manifest(path),)
        problem = path_problem(root, MANIFEST) if is_folder else None
    except (OSError, ValueError, RuntimeError) as error:
        return None, (finding("E001", Place(str(path), ""), f"cannot be read ({type(error).__name__})"),)
    if problem is not None:
        return None, (finding("E002", Place(MANIFEST, ""), problem, "put the file itself into the folder"),)
    raw = _read_json(file, file.name, findings)
    if raw is None:
        return None, tuple(findings)
    if not isinstance(raw, dict):
        return None, (finding("E004", Place(file.name, ""), "the manifest must be a JSON object"),)
    origins = Origins(file.name)
    if file.name == MANIFEST:
        for key in _MERGED:
            _merge(raw, key, root, origins, findings)
    atlas, more = _build(raw, origins, file.name, root)
    return (None if findings else atlas), (*findings, *more)


def _no_manifest(folder: Path) -> Finding:
    yaml = (folder / "atlas.yaml").exists() or (folder / "atlas.yml").exists()
    hint = "this version reads JSON, not YAML" if yaml else "an Atlas is a folder with atlas.json, or such a file"
    return finding("E001", Place(str(folder), ""), "there is no atlas.json in this folder", hint)


def _build(
    raw: dict[str, JsonValue], origins: Origins, file: str, root: Path | None
) -> tuple[Atlas | None, tuple[Finding, ...]]:
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        return None, tuple(shape_findings(error, raw, origins))
    findings = list(check(manifest, origins))
    documents = dict(_documents(manifest, origins, root, findings))
    if any(item.severity == "error" for item in findings):
        return None, tuple(findings)
    return Atlas(manifest, file, documents, tuple(findings)), tuple(findings)


def _documents(
    manifest: Manifest, origins: Origins, root: Path | None, findings: list[Finding]
) -> Iterator[tuple[str, str]]:
    for index, pack in enumerate(manifest.context_packs):
        for position, name in enumerate(pack.files):
            place = origins.at("context_packs", index, "files", position)
            if root is None:
                findings.append(
                    finding("E003", place, "this Atlas has no folder to read files from", "load it from a folder")
                )
                continue
            problem = path_problem(root, name)
            if problem is not None:
                findings.append(finding("E002", place, problem, "name a file inside the Atlas's folder"))
                continue
            file = root / name
            if not file.exists():
                findings.append(finding("E003", place, f"{name} does not exist", "write it, or remove the name"))
                continue
            text = _read_text(file, place, findings)
            if text is not None:
                yield name, text


def path_problem(root: Path, name: str) -> str | None:
    """Why ``name`` may not be opened below ``root``, or None. Links are followed first, then judged."""
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or "\\" in name:
        return "not a relative path"
    try:
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            return "the path leaves the Atlas's folder"
        if target.exists() and not target.is_file():
            return "not a plain file"
    except (OSError, RuntimeError):  # a name that is too long, a link to itself
        return "not a path that can be followed"
    return None


def _merge(raw: dict[str, JsonValue], key: str, root: Path, origins: Origins, findings: list[Finding]) -> None:
    folder = root / key
    if not folder.is_dir():
        return
    entries = raw.setdefault(key, [])
    if not isinstance(entries, list):
        return  # the manifest's own shape is wrong, which is found later
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        name = f"{key}/{file.name}"
        problem = path_problem(root, name)
        if problem is not None or file.suffix != ".json":
            hint = "this version reads .json files" if problem is None else ""
            findings.append(finding("E002", Place(name, ""), problem or "not a .json file", hint))
            continue
        content = _read_json(file, name, findings)
        if content is None:
            continue
        pointer = ""
        if isinstance(content, dict) and key in content and len(content) == 1:
            content, pointer = content[key], f"/{key}"
        if isinstance(content, list):
            for index, entry in enumerate(content):
                origins.add(key, len(entries), Place(name, f"{pointer}/{index}"))
                entries.append(entry)
        else:
            origins.add(key, len(entries), Place(name, pointer))
            entries.append(content)


def _read_text(file: Path, place: Place, findings: list[Finding]) -> str | None:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would block, a device never end
            findings.append(finding("E001", place, "not a plain file", "name a file"))
            return None
        if file.stat().st_size > MAX_FILE_BYTES:
            findings.append(finding("E001", place, f"larger than {MAX_FILE_BYTES} bytes", "split it"))
            return None
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        findings.append(finding("E001", place, f"not UTF-8 at byte {error.start}", "save it as UTF-8"))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else "no path at all"
        findings.append(finding("E001", place, f"cannot be read: {why}", "is the file there, and readable?"))
    return None


class _NotJsonError(ValueError):
    pass


def _read_json(file: Path, name: str, findings: list[Finding]) -> JsonValue:
    place = Place(name, "")
    text = _read_text(file, place, findings)
    if text is None:
        return None
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        findings.append(finding("E001", place, f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"))
    except _NotJsonError as error:
        findings.append(finding("E001", place, str(error)))
    except RecursionError:
        findings.append(finding("E001", place, "nested too deeply"))
    except ValueError:  # CPython refuses to read an integer of more than 4,300 digits
        findings.append(finding("E001", place, "holds a number that is too long to read"))
    else:
        if value is None:
            findings.append(finding("E004", place, "null is no entry"))
        return value
    return None


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        twice = sorted({key for key in names if names.count(key) > 1})
        raise _NotJsonError(f"duplicate key {twice[0]!r}: readers would disagree about which one counts")
    return result


def _no_constant(name: str) -> JsonValue:
    raise _NotJsonError(f"{name} is not JSON")
