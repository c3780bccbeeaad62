"""What is read, in which order, and what is never opened."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas
from cra_middleware.atlas.loader import MAX_FILE_BYTES, inspect
from cra_middleware.atlas.schemas import compile_schema
from cra_middleware.errors import AtlasError
from tests.conftest import manifest, policies


def write(folder: Path, whole: Any, name: str = "atlas.json") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(whole if isinstance(whole, bytes) else json.dumps(whole).encode())
    return file


def codes(path: Path) -> list[str]:
    atlas, findings = inspect(path)
    assert atlas is None
    return [item.code for item in findings]


def with_files(*names: str) -> dict[str, Any]:
    return manifest(context_packs=[{"pack_id": "k", "name": "k", "files": list(names)}])


def deny(name: str) -> dict[str, Any]:
    return {"policy_id": name, "type": "deny", "actions": ["ticket.delete"]}


def test_folder_and_file_are_the_same(tmp_path: Path) -> None:
    """A folder, and the ``atlas.json`` in it, are one Atlas: the policies beside it count either way."""
    file = write(tmp_path, with_files("context/a.md"))
    write(tmp_path, b"text", "context/a.md")
    write(tmp_path, deny("more"), "policies/more.json")
    for path in (tmp_path, str(tmp_path), file):
        atlas = Atlas.load(path)
        assert [policy.policy_id for policy in atlas.manifest.policies] == ["allow-all", "no-delete", "more"]
        assert atlas.documents == {"context/a.md": "text"}
        assert atlas.file == "atlas.json"


def test_a_file_alone(tmp_path: Path) -> None:
    """A file of another name is an Atlas alone; what lies beside it belongs to others."""
    file = write(tmp_path, manifest(), "support.json")
    write(tmp_path, b"{", "policies/broken.json")
    assert [policy.policy_id for policy in Atlas.load(file).manifest.policies] == ["allow-all", "no-delete"]


def test_merging_order(tmp_path: Path) -> None:
    """The manifest's entries come first, then files by name: an entry, a list, or an object with that key."""
    write(tmp_path, manifest(policies=policies()))
    write(tmp_path, [deny("b1"), deny("b2")], "policies/b.json")
    write(tmp_path, deny("a"), "policies/a.json")
    write(tmp_path, {"policies": [deny("c")]}, "policies/c.json")
    write(tmp_path, {"policies": []}, "policies/d.json")
    write(tmp_path, {"action_id": "zebra.feed", "name": "n", "description": "d"}, "actions/a.json")
    atlas = Atlas.load(tmp_path)
    assert [policy.policy_id for policy in atlas.manifest.policies] == ["allow-all", "a", "b1", "b2", "c"]
    assert atlas.manifest.actions[-1].action_id == "zebra.feed"


def test_folders_alone_are_enough(tmp_path: Path) -> None:
    """A manifest without policies or actions may have them in folders only."""
    whole = manifest()
    del whole["policies"], whole["actions"]
    write(tmp_path, whole)
    write(tmp_path, policies(), "policies/all.json")
    write(tmp_path, {"action_id": "a.b", "name": "n", "description": "d"}, "actions/a.json")
    atlas = Atlas.load(tmp_path)
    assert (len(atlas.manifest.policies), len(atlas.manifest.actions), atlas.findings) == (1, 1, ())


@pytest.mark.parametrize("name", ["policies/notes.md", "policies/x.toml", "policies/.x.json.swp", "policies/X.JSON"])
def test_files_that_are_not_read_are_told(name: str, tmp_path: Path) -> None:
    """Nothing in ``policies/`` is passed over in silence: it might be a restriction."""
    write(tmp_path, manifest())
    write(tmp_path, b"", name)
    assert codes(tmp_path) == ["E002"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b'{"a": 1, "b": 2, "a": 1}', "duplicate key 'a'"),
        (b'{"a": [{"b": {"c": 1, "c": 2}}]}', "duplicate key 'c'"),
        (b'{"\\u0061": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ('{"a": "ä"}'.encode("latin-1"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["atlas.json", "policies/x.json"])
def test_not_json(text: bytes, message: str, name: str, tmp_path: Path) -> None:
    """What two readers could read differently, or cannot read, is E001, in whatever file."""
    write(tmp_path, manifest())
    write(tmp_path, text, name)
    atlas, findings = inspect(tmp_path)
    assert atlas is None
    (found,) = findings
    assert (found.code, found.file) == ("E001", name)
    assert message in found.message


@pytest.mark.parametrize("depth", [300, 3000])
def test_deep_values(depth: int, tmp_path: Path) -> None:
    """A value nested too deeply is a finding, wherever it stands, and never an exception."""
    deep = b"[" * depth + b"]" * depth
    write(tmp_path, json.dumps(manifest(metadata={"a": "HERE"})).encode().replace(b'"HERE"', deep))
    assert set(codes(tmp_path)) <= {"E001", "E004"}


def test_deep_schema_has_a_digest() -> None:
    """Whatever loads has a policy digest, regular expressions as keys and deep schemas too."""
    schema: dict[str, Any] = {"patternProperties": {'^\\d"+$': {"type": "number", "maximum": 10**30}}}
    for _ in range(200):
        schema = {"not": schema}
    action = {"action_id": "a.b", "name": "n", "description": "d", "parameters_schema": schema}
    assert len(Atlas.from_dict(manifest(actions=[action], policies=policies())).policy_digest) == 64


def test_digest_covers_decisions_only() -> None:
    """The policy digest changes with a policy, an action or a capability, and with nothing else."""
    before = Atlas.from_dict(manifest()).policy_digest
    assert Atlas.from_dict(manifest(name="Other", metadata={"a": 1})).policy_digest == before
    assert Atlas.from_dict(manifest(policies=policies())).policy_digest != before
    capability = {"capability_id": "c", "name": "c", "actions": ["ticket.get"]}
    assert Atlas.from_dict(manifest(capabilities=[capability])).policy_digest != before
    assert Atlas.from_dict(manifest(version="1.0.1")).policy_digest != before


def test_huge_file(tmp_path: Path) -> None:
    """A file over the limit is not read."""
    os.truncate(write(tmp_path, b"{"), MAX_FILE_BYTES + 1)
    atlas, (found,) = inspect(tmp_path)
    assert atlas is None
    assert (found.code, "larger" in found.message) == ("E001", True)


@pytest.mark.parametrize("name", ["none", "none/atlas.json", "a" * 5000, "a\0b"])
def test_nothing_there(name: str, tmp_path: Path) -> None:
    """A path at which nothing is, or can be, is E001."""
    assert codes(tmp_path / name) == ["E001"]


def test_empty_folder(tmp_path: Path) -> None:
    """A folder without a manifest is E001, and one with two as well: nobody could say which one counts."""
    assert codes(tmp_path) == ["E001"]
    (tmp_path / "atlas.yaml").write_text("a: b")
    (tmp_path / "atlas.json").write_text("{}")
    _, (found,) = inspect(tmp_path)
    assert "which one counts" in found.message


def test_directory_instead_of_file(tmp_path: Path) -> None:
    """A directory, or a pipe, where a file should be is told and not opened."""
    (tmp_path / "atlas.json").mkdir()
    assert codes(tmp_path) == ["E002"]
    (tmp_path / "atlas.json").rmdir()
    write(tmp_path, with_files("pipe", "folder"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert codes(tmp_path) == ["E002", "E002"]
    os.mkfifo(tmp_path / "alone.json")
    assert codes(tmp_path / "alone.json") == ["E001"]
    (tmp_path / "policies" / "x.json").mkdir(parents=True)
    assert codes(tmp_path) == ["E002", "E002", "E002"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../secret.md", "E002"),
        ("context/../../secret.md", "E002"),
        ("context/../../atlas/context/a.md", None),
        ("context/../context/a.md", None),
        ("./context/a.md", None),
        ("/etc/passwd", "E002"),
        ("//etc/passwd", "E002"),
        ("..\\secret.md", "E002"),
        ("", "E002"),
        (".", "E002"),
        ("..", "E002"),
        ("context", "E002"),
        ("~/secret.md", "E003"),
        ("$HOME/secret.md", "E003"),
        ("none.md", "E003"),
        ("context/a.md/x", "E003"),
        ("a" * 300, "E002"),
        ("a/" * 5000, "E002"),
    ],
)
def test_paths(name: str, code: str | None, tmp_path: Path) -> None:
    """A context file is inside the folder once ``..`` is worked out, or it is refused unread."""
    folder = tmp_path / "atlas"
    write(tmp_path, b"secret", "secret.md")
    write(folder, with_files(name))
    write(folder, b"text", "context/a.md")
    atlas, findings = inspect(folder)
    assert [item.code for item in findings] == ([code] if code else [])
    assert (atlas.documents if atlas else {}) == ({} if code else {name: "text"})


def test_links(tmp_path: Path) -> None:
    """Links are followed first and judged then: inside to inside is read, inside to outside is not."""
    folder = tmp_path / "atlas"
    write(tmp_path, b"secret", "outside/secret.md")
    write(folder, b"text", "context/a.md")
    (folder / "ok.md").symlink_to("context/a.md")
    (folder / "docs").symlink_to("context")
    (folder / "leak.md").symlink_to("../outside/secret.md")
    (folder / "far").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling.md").symlink_to("none.md")
    for name, code in {
        "ok.md": None,
        "docs/a.md": None,
        "leak.md": "E002",
        "far/secret.md": "E002",
        "docs/../leak.md": "E002",
        "loop": "E002",
        "loop/x": "E002",
        "dangling.md": "E003",
    }.items():
        write(folder, with_files(name))
        atlas, findings = inspect(folder)
        assert [item.code for item in findings] == ([code] if code else []), name
        assert (atlas.documents if atlas else {}) == ({} if code else {name: "text"})


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    """The Atlas's own folder may be reached through a link."""
    write(tmp_path / "real", with_files("a.md"))
    write(tmp_path / "real", b"text", "a.md")
    (tmp_path / "link").symlink_to("real")
    assert Atlas.load(tmp_path / "link").documents == {"a.md": "text"}


def test_merged_files_stay_inside(tmp_path: Path) -> None:
    """A policy, a folder of policies, or the manifest itself that is a link to outside is not read."""
    write(tmp_path, deny("outside"), "outside/x.json")
    write(tmp_path, manifest(), "outside/atlas.json")
    first, second, third, fine = (tmp_path / name for name in ("first", "second", "third", "fine"))
    for folder in (first, second, fine):
        write(folder, manifest())
    (first / "policies").mkdir()
    (first / "policies" / "x.json").symlink_to("../../outside/x.json")
    assert codes(first) == ["E002"]
    (second / "policies").symlink_to(tmp_path / "outside")
    assert set(codes(second)) == {"E002"}
    third.mkdir()
    (third / "atlas.json").symlink_to("../outside/atlas.json")
    assert codes(third) == ["E002"]
    (fine / "more").mkdir()
    write(fine, deny("inside"), "more/x.json")
    (fine / "policies").symlink_to("more")
    assert [policy.policy_id for policy in Atlas.load(fine).manifest.policies][-1] == "inside"


@pytest.mark.parametrize("where", ["actions", "policies"])
def test_references_connect_to_nothing(where: str, tmp_path: Path) -> None:
    """A ``$ref`` to a file or an address is E007; the file is not read, and nobody is connected to."""
    write(tmp_path, {"type": "object"}, "schema.json")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for ref in (f"http://{address}/x", f"https://{address}/x", f"file://{tmp_path}/schema.json", "schema.json"):
            schema = {"properties": {"a": {"$ref": ref}}}
            entry: dict[str, Any] = {"action_id": "a.b", "name": "n", "description": "d", "parameters_schema": schema}
            whole = manifest(actions=[entry], policies=policies())
            if where == "policies":
                whole = manifest(policies=policies({**deny("d"), "conditions": {"parameters": schema}}))
            assert set(codes(write(tmp_path, whole))) == {"E007"}
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", "(a)\\1", "(?P<n>a)(?P=n)", "(", "a{1000}{1000}{1000}"]
)
def test_patterns_that_could_be_slow(pattern: str) -> None:
    """Look-around, back-references and patterns that grow without bound are refused when the Atlas is loaded."""
    entry = {
        "action_id": "a.b",
        "name": "n",
        "description": "d",
        "parameters_schema": {"properties": {"a": {"pattern": pattern}}},
    }
    with pytest.raises(AtlasError, match="E007 <dict>#/actions/0/parameters_schema/properties/a/pattern"):
        Atlas.from_dict(manifest(actions=[entry], policies=policies()))


def test_patterns_are_linear() -> None:
    """A pattern that makes a backtracking engine hang decides a long text at once."""
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["a"]}
    atlas = Atlas.from_dict(manifest(policies=policies({**deny("d"), "conditions": {"parameters": schema}})))
    condition = atlas.manifest.policies[1].conditions.parameters
    assert condition is not None
    assert compile_schema(condition).is_valid({"a": "a" * 50_000 + "b"}) is False


def test_from_dict_reads_no_files() -> None:
    """An Atlas from memory has no folder."""
    with pytest.raises(AtlasError, match="E003"):
        Atlas.from_dict(with_files("a.md"))


def test_from_dict_leaves_the_callers_dict_alone() -> None:
    """What is loaded is a copy: changing the dict afterwards changes no policy."""
    whole = manifest()
    atlas = Atlas.from_dict(whole)
    before = atlas.policy_digest
    whole["policies"].clear()
    assert len(atlas.manifest.policies) == 2
    assert Atlas.from_dict(manifest()).policy_digest == before
