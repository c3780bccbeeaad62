"""What a server counts, what its clients measure, and that no decision is counted twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the telemetry tests need the otel extra")

from cra_middleware import ApprovalRequired, CallRefused, Runtime
from cra_middleware.errors import RuntimeUnreachable
from tests.client.served import until
from tests.conftest import manifest
from tests.metered import Metered, metered
from tests.otlp import Collector, attributes, collector
from tests.server.serving import ASKED, Process, Serve, Served, free_port, listening

__all__ = ["collector", "metered"]

ATLAS = manifest(policies=[*manifest()["policies"], ASKED])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.client.connection._FIRST_PAUSE_SECONDS", 0.01)


@contextmanager
def client(served: Served, metered: Metered, **terms: Any) -> Iterator[Runtime]:
    with listening(served) as port:
        url, api_key = f"http://127.0.0.1:{port}", served.key("bot")
        with Runtime.connect(url, api_key=api_key, meter_provider=metered.provider, **terms) as runtime:
            yield runtime


def calls(runtime: Runtime) -> list[str]:
    """One that runs, one that fails, one that is denied, one that waits; the kinds of their events."""
    with runtime.session("bot", "Help") as session:
        session.call("ticket.get", lambda: "open")
        with pytest.raises(ZeroDivisionError):
            session.call("ticket.update", lambda: 1 // 0)
        with pytest.raises(CallRefused):
            session.call("ticket.delete", lambda: None)
        with pytest.raises(ApprovalRequired):
            session.call("refund.create", lambda: None)
    return [event.event_type for event in session.events]


DECISIONS = {"allow": 2, "deny/policy_denied": 1, "require_approval": 1}


def test_each_counts_its_own(serve: Serve) -> None:
    """The server counts decisions, events and open questions; the client measures, and counts none of these."""
    here, there = Metered(), Metered()
    served = serve(ATLAS, meter_provider=there.provider)
    assert list(there.values("cra.approvals.pending").values()) == [0]  # before anybody called
    with client(served, here) as runtime:
        kinds = calls(runtime)
    kept = {dict(key)["cra.trace.event_type"]: count for key, count in there.values("cra.trace.events").items()}
    assert kept == {kind: kinds.count(kind) for kind in kinds}  # outcomes that were told of, too
    assert there.decisions() == DECISIONS
    assert there.points("gen_ai.execute_tool.duration") == []  # no tool ran there
    assert sum(there.values("cra.call.overhead").values()) == 4
    assert here.decisions() == {}
    assert here.values("cra.trace.events") == {}
    assert here.points("cra.approvals.pending") == []
    assert sum(here.values("gen_ai.execute_tool.duration").values()) == 2
    assert {dict(key)["cra.decision"]: count for key, count in here.values("cra.call.overhead").items()} == {
        "allow": 2,
        "deny": 1,
        "require_approval": 1,
    }


def test_a_server_and_its_client_in_one_process(serve: Serve, metered: Metered) -> None:
    """With one provider for both, each call is still one decision, and one duration."""
    with client(serve(ATLAS, meter_provider=metered.provider), metered) as runtime:
        calls(runtime)
    assert metered.decisions() == DECISIONS
    assert sum(metered.values("gen_ai.execute_tool.duration").values()) == 2


def test_the_network_is_overhead(serve: Serve, metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client measures holds the way to the server and back, and not the tool's own time."""
    now = [0]

    class Clock:
        @staticmethod
        def monotonic_ns() -> int:
            return now[0]

    with client(serve(ATLAS), metered) as runtime, runtime.session("bot", "Help") as session:
        monkeypatch.setattr("cra_middleware.metrics.time", Clock)
        connection: Any = runtime._connection  # type: ignore[attr-defined]
        ask = connection.ask

        def slowly(method: str, path: str, *args: Any, **terms: Any) -> Any:
            if path == "/v1/execute":
                now[0] += 2_000_000_000
            return ask(method, path, *args, **terms)

        monkeypatch.setattr(connection, "ask", slowly)

        def tool() -> None:
            now[0] += 5_000_000_000

        session.call("ticket.get", tool)
    (duration,) = metered.points("gen_ai.execute_tool.duration")
    (overhead,) = metered.points("cra.call.overhead")
    assert (duration.sum, overhead.sum) == (5.0, 2.0)


def test_the_servers_own_executor(serve: Serve) -> None:
    """A tool that the server runs is measured there, and nowhere else."""
    here, there = Metered(), Metered()

    def listed(**arguments: object) -> dict[str, object]:
        return {"value": ["T-1"]}

    def fails(**arguments: object) -> None:
        raise ValueError("no")

    executors = {"ticket.list": listed, "ticket.update": fails}
    with client(serve(ATLAS, meter_provider=there.provider, executors=executors), here) as runtime:
        with runtime.session("bot", "Help") as session:
            assert session.call("ticket.list", lambda: None) == ["T-1"]
            with pytest.raises(CallRefused, match="the server ran it"):
                session.call("ticket.update", lambda: None)
    assert here.points("gen_ai.execute_tool.duration") == []
    durations = there.values("gen_ai.execute_tool.duration")
    assert sorted(str(dict(key).get("error.type")) for key in durations) == ["None", "ValueError"]
    assert there.decisions() == {"allow": 2}


@pytest.mark.parametrize("spooled", [False, True])
def test_a_server_that_is_away(serve: Serve, metered: Metered, tmp_path: Path, spooled: bool) -> None:
    """What a client decides by itself it counts, once: here, or in the session that stands in for the server's."""
    served = serve(ATLAS)
    terms: dict[str, Any] = {"on_unreachable": "cached", "spool": tmp_path / "spool"} if spooled else {}
    terms["timeout_seconds"] = 0.5
    with listening(served) as port:
        url = f"http://127.0.0.1:{port}"
        runtime = Runtime.connect(url, api_key=served.key("bot"), meter_provider=metered.provider, **terms)
        session = runtime.session("bot", "Help")
        session.call("ticket.get", lambda: None)
    with pytest.raises(RuntimeUnreachable):
        session.call("refund.create", lambda: None)
    if spooled:
        session.call("ticket.get", lambda: None)
    runtime.detach()
    allowed = {"allow": 1} if spooled else {}
    assert metered.decisions() == {**allowed, "deny/runtime_unreachable": 1}
    assert sum(metered.values("gen_ai.execute_tool.duration").values()) == 1 + spooled


@pytest.mark.slow
def test_the_program(collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cra serve`` sends what it counts where the environment says, under the name that it says, until it stops."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "cra-left")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    process = Process(tmp_path, atlas=ATLAS)
    with Runtime.connect(process.url) as runtime:
        calls(runtime)
        until(lambda: [point.as_int for point in collector.points("cra.approvals.pending")] == [0])
    assert process.stop(signal.SIGTERM) == 0
    told = {attributes(point)["cra.decision"]: point.as_int for point in collector.points("cra.decisions")}
    assert told == {"allow": 2, "deny": 1, "require_approval": 1}
    assert collector.services == {"cra-left"}


@pytest.mark.slow
def test_the_program_without_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that is not there costs no call, and the server still stops as it should."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    process = Process(tmp_path, atlas=ATLAS)
    with Runtime.connect(process.url) as runtime:
        calls(runtime)
    assert process.stop(signal.SIGTERM) == 0
    assert os.listdir(tmp_path / "traces")
