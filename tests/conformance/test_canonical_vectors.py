"""The shared canonical vectors: where encoders agree we agree; where they do not, our text is tagged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cra_middleware._canonical import canonical
from cra_middleware.trace.profiles import choose, read

TAGGED = {  # the safe profile turns these values into strings
    "neg_zero": '{"x":0.0}',
    "float_1e16": '{"x":"cra:float:1e+16"}',
    "float_1e-5": '{"x":"cra:float:1e-05"}',
    "int_2^53": '{"x":"cra:int:9007199254740992"}',
    "nan": '{"x":"cra:float:nan"}',
    "infinity": '{"x":"cra:float:inf"}',
    "lone_surrogate": '{"x":"cra:text:\\\\ud800"}',
}


def test_vectors(conformance: Path) -> None:
    vectors = json.loads((conformance / "canonical-vectors.json").read_text())["vectors"]
    seen = set()
    for vector in vectors:
        if vector["name"] == "control_chars":
            value = {"t": '\0\x01\b\t\n\v\f\r\x1f"\\/'}
        else:
            value = json.loads(vector["input_json"])
        text = canonical(value).decode()
        utf8 = vector["out"]["py_utf8"].get("text")
        serde = vector["out"]["serde_json_1.0.87"].get("text")
        if vector["name"] in TAGGED:
            seen.add(vector["name"])
            assert text == TAGGED[vector["name"]]
        elif '"cra:' not in text and text != '{"x":0}':
            assert text == utf8 == serde, vector["name"]
    assert seen == TAGGED.keys()


def test_whole_events(conformance: Path) -> None:
    """The ASCII event hashes the same in every profile; the other one as its own profile says."""
    data = json.loads((conformance / "canonical-vectors.json").read_text())
    for vector in data["full_event_vectors"]:
        for profile, key in (("appendix-b", "event_hash_ensure_ascii"),):
            line = json.dumps({**vector["event"], "event_hash": vector[key]}).encode()
            assert choose(line) == profile
            assert read(line, profile).computed_hash == vector[key]
        assert hashlib.sha256(vector["preimage_utf8"].encode()).hexdigest() == vector["event_hash_utf8"]
