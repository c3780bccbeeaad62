"""The only reader of Atlas files. Nothing outside the Atlas's folder is ever opened.

An Atlas is a folder with ``atlas.yaml`` or ``atlas.json``, or one such file alone. Beside it may lie ``policies/``,
``rules/`` and ``actions/`` (one entry, a list, or an object with that key; merged in file-name order), ``adapters/``
(one file a framework, named like it) and whatever files the context packs name. Rules become policies, behind those
that are written.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from pydantic import JsonValue, ValidationError

from cra_middleware import presence
from cra_middleware._canonical import digest
from cra_middleware.atlas.findings import Finding, Origins, Place, check, finding, shape_findings
from cra_middleware.atlas.lock import NAME as LOCK
from cra_middleware.atlas.lock import Lock, parse_lock
from cra_middleware.atlas.manifest import Manifest
from cra_middleware.atlas.rules import compile_rule
from cra_middleware.atlas.yaml_text import NotYamlError, read_yaml
from cra_middleware.errors import AtlasError

MAX_FILE_BYTES = 16 * 1024 * 1024
MANIFESTS = ("atlas.json", "atlas.yaml", "atlas.yml")
SUFFIXES = (".json", ".yaml", ".yml")
_MERGED = ("actions", "policies", "rules")


@dataclass(frozen=True)
class Atlas:
    """A loaded Atlas: its manifest, the documents it names, and what was noticed on the way."""

    manifest: Manifest
    file: str
    documents: Mapping[str, str]
    """Text by the path that a context pack names it with."""
    findings: tuple[Finding, ...] = ()
    """Warnings; an Atlas with errors is never made."""
    lock: Lock | None = None
    """The tools that were looked at; None when there is no ``atlas.lock``."""

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
        """SHA-256 of everything a decision depends on: actions, capabilities, policies, tool maps and lock, as read."""
        keys = {"atlas_id", "version", "actions", "capabilities", "policies", "adapters"}
        # without what is not said, so that a word which a later version adds changes no digest
        read = self.manifest.model_dump(mode="json", include=keys, exclude_none=True)
        if self.lock is not None:
            read["lock"] = {source: dict(names) for source, names in self.lock.tools.items()}
        # not canonical(): the keys of a schema may be regular expressions, which the safe profile has no text for
        return digest(json.dumps(read, sort_keys=True, separators=(",", ":")).encode())


def inspect(path: Path) -> tuple[Atlas | None, tuple[Finding, ...]]:
    """The Atlas at ``path`` (None when it has errors) and every finding about it.

    A file that is called ``atlas.json`` or ``atlas.yaml`` stands for its folder: the policies beside it count too.
    """
    findings: list[Finding] = []
    try:
        is_folder = presence.is_dir(path)
        names = [name for name in MANIFESTS if presence.exists(path / name)] if is_folder else [path.name]
        if len(names) != 1:
            return None, (_no_manifest(path, names),)
        file = path / names[0] if is_folder else path
        root = file.parent.resolve()
        problem = path_problem(root, file.name) if is_folder else None
    except (OSError, ValueError, RuntimeError) as error:
        return None, (finding("E001", Place(str(path), ""), f"cannot be read ({type(error).__name__})"),)
    if problem is not None:
        return None, (finding("E002", Place(file.name, ""), problem, "put the file itself into the folder"),)
    raw = _read(file, file.name, findings)
    if raw is None:
        return None, tuple(findings)
    if not isinstance(raw, dict):
        return None, (finding("E004", Place(file.name, ""), "the manifest must be a JSON object"),)
    origins = Origins(file.name)
    if file.name in MANIFESTS:
        for key in _MERGED:
            _merge(raw, key, root, origins, findings)
        _merge_adapters(raw, root, findings)
    lock = _lock(root, findings) if file.name in MANIFESTS else None
    atlas, more = _build(raw, origins, file.name, root)
    if atlas is None or findings:
        return None, (*findings, *more)
    return (atlas if lock is None else replace(atlas, lock=lock)), more


def read_document(path: Path) -> tuple[JsonValue, tuple[Finding, ...]]:
    """Any YAML or JSON file, read as strictly as an Atlas is, and what is wrong with it."""
    findings: list[Finding] = []
    return _read(path, path.name, findings), tuple(findings)


def _no_manifest(folder: Path, names: Sequence[str]) -> Finding:
    if names:
        return finding("E001", Place(str(folder), ""), f"{' and '.join(names)}: which one counts?", "keep one of them")
    hint = "an Atlas is a folder with atlas.yaml or atlas.json, or such a file; cra atlas init makes one"
    return finding("E001", Place(str(folder), ""), "there is no atlas.yaml or atlas.json in this folder", hint)


def _build(
    raw: dict[str, JsonValue], origins: Origins, file: str, root: Path | None
) -> tuple[Atlas | None, tuple[Finding, ...]]:
    plain, problems = _without_rules(raw, origins)
    try:
        manifest = Manifest.model_validate(plain)
    except ValidationError as error:
        return None, (*problems, *shape_findings(error, plain, origins))
    findings = [*problems, *check(manifest, origins)]
    documents = dict(_documents(manifest, origins, root, findings))
    if any(item.severity == "error" for item in findings):
        return None, tuple(findings)
    return Atlas(manifest, file, documents, tuple(findings)), tuple(findings)


def _without_rules(raw: dict[str, JsonValue], origins: Origins) -> tuple[dict[str, JsonValue], list[Finding]]:
    """The manifest with its rules as policies, and without its variables (``x-*``)."""
    plain = {key: value for key, value in raw.items() if key != "rules" and not key.startswith("x-")}
    rules = raw.get("rules") or []  # a page on which everything is still a comment
    if not isinstance(rules, list):
        return plain, [finding("E011", origins.at("rules"), "rules is a list", "begin each rule with a dash")]
    written = plain.get("policies", [])
    if not rules or not isinstance(written, list):
        return plain, []  # what is wrong with the policies is found later
    policies = list(written)
    taken = {str(entry.get("id", entry.get("policy_id"))) for entry in (*rules, *policies) if isinstance(entry, dict)}
    problems: list[Finding] = []
    for index, rule in enumerate(rules):
        made, wrong = compile_rule(rule, taken)
        problems += (finding("E011", origins.at("rules", index, *item.at), item.message, item.hint) for item in wrong)
        for policy in made:
            origins.add("policies", len(policies), origins.at("rules", index))
            policies.append(policy)
    return {**plain, "policies": policies}, problems


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
            if not presence.exists(file):
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
        if _is_loop(target):
            return "not a path that can be followed"
        if presence.exists(target) and not presence.is_file(target):
            return "not a plain file"
    except (OSError, RuntimeError):  # a name that is too long, a link to itself
        return "not a path that can be followed"
    return None


def _is_loop(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _merge(raw: dict[str, JsonValue], key: str, root: Path, origins: Origins, findings: list[Finding]) -> None:
    found = list(_entries(root, key, findings))
    entries = raw.setdefault(key, []) if found else None
    if not isinstance(entries, list):
        return  # nothing to merge; or the manifest's own shape is wrong, which is found later
    for name, content in found:
        pointer = ""
        if (
            isinstance(content, dict)
            and key in content
            and all(other.startswith("x-") for other in content.keys() - {key})
        ):
            content, pointer = content[key] or [], f"/{key}"  # a page on which everything is still a comment
        if isinstance(content, list):
            for index, entry in enumerate(content):
                origins.add(key, len(entries), Place(name, f"{pointer}/{index}"))
                entries.append(entry)
        else:
            origins.add(key, len(entries), Place(name, pointer))
            entries.append(content)


def _merge_adapters(raw: dict[str, JsonValue], root: Path, findings: list[Finding]) -> None:
    for name, content in list(_entries(root, "adapters", findings)):
        adapters = raw.setdefault("adapters", {})
        framework = PurePosixPath(name).stem
        if not isinstance(adapters, dict):
            return
        if framework in adapters:
            findings.append(finding("E005", Place(name, ""), f"adapter {framework!r} is given twice", "keep one"))
        adapters[framework] = content


def _lock(root: Path, findings: list[Finding]) -> Lock | None:
    if not os.path.lexists(root / LOCK):
        return None
    problem = path_problem(root, LOCK)
    place = Place(LOCK, "")
    if problem is not None:
        findings.append(finding("E002", place, problem, "put the lock itself into the folder"))
        return None
    content = _read(root / LOCK, LOCK, findings)
    try:
        return None if content is None else parse_lock(content)
    except ValueError as error:
        findings.append(finding("E004", place, str(error), "write it with: cra atlas lock"))
        return None


def _entries(root: Path, key: str, findings: list[Finding]) -> Iterator[tuple[str, JsonValue]]:
    """The files of a folder that is merged, in the order of their names."""
    folder = root / key
    try:
        is_there = presence.is_dir(folder) or os.path.lexists(folder)  # a link to nowhere, a file: no folder of rules
        files = sorted(folder.iterdir(), key=lambda item: item.name) if is_there else []
    except OSError as error:  # what it holds is not known to be nothing
        findings.append(finding("E001", Place(key, ""), f"cannot be read ({type(error).__name__})"))
        return
    for file in files:
        name = f"{key}/{file.name}"
        problem = path_problem(root, name)
        if problem is not None or file.suffix not in SUFFIXES:
            hint = f"an Atlas reads {', '.join(SUFFIXES)} files" if problem is None else ""
            findings.append(finding("E002", Place(name, ""), problem or "neither YAML nor JSON", hint))
            continue
        content = _read(file, name, findings)
        if content is not None:
            yield name, content


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


def _read(file: Path, name: str, findings: list[Finding]) -> JsonValue:
    place = Place(name, "")
    text = _read_text(file, place, findings)
    if text is None:
        return None
    try:
        value: JsonValue = read_yaml(text) if file.suffix in (".yaml", ".yml") else _json(text)
    except json.JSONDecodeError as error:
        findings.append(finding("E001", place, f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"))
    except (_NotJsonError, NotYamlError) as error:
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


def _json(text: str) -> JsonValue:
    value: JsonValue = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        twice = sorted({key for key in names if names.count(key) > 1})
        raise _NotJsonError(f"duplicate key {twice[0]!r}: readers would disagree about which one counts")
    return result


def _no_constant(name: str) -> JsonValue:
    raise _NotJsonError(f"{name} is not JSON")
