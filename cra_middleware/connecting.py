"""How a runtime is had otherwise than by naming its parts: to look on, from a server, as the environment says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from cra_middleware.policies import AtlasSource
    from cra_middleware.runtime import Runtime
    from cra_middleware.trace.sink import Sink


class Connecting:
    """What ``Runtime`` has of this."""

    @classmethod
    def observe(
        cls,
        trace: str | Path | Sink | None = None,
        *,
        atlas: AtlasSource | Sequence[AtlasSource] = (),
        record: Literal["hash", "full"] = "hash",
        redact: Sequence[str] = (),
    ) -> Runtime:
        """A runtime that needs no Atlas: everything runs and is recorded, what would be denied is printed.

        ``cra trace learn`` proposes rules from such traces.
        """
        from cra_middleware.runtime import Runtime

        return Runtime(atlas, trace=trace, mode="observe", record=record, redact=redact)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 10.0,
        on_unreachable: Literal["deny", "cached"] = "deny",
        spool: str | Path | None = None,
        ca_file: str | Path | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> Runtime:
        """A runtime that decides, asks and records at a server (``cra serve``); the tools run here.

        The first session asks the server something, not this. A call whose decision does not come in time raises
        ``RuntimeUnreachable`` and does not run.

        Args:
            url: where the server is: ``https://cra.example:8420``.
            api_key: who we are, as ``cra apikeys create`` gave it.
            timeout_seconds: how long one question to the server may take, with everything that is tried for it.
            on_unreachable: ``cached`` lets actions run without the server that its last answer allowed whatever their
                arguments, until that answer has expired; everything else is refused.
            spool: the folder for what is recorded meanwhile, as sessions of their own, handed over later.
            ca_file: whom to trust (PEM), instead of the authorities that the system knows.
            tracer_provider: where spans go; without it, OpenTelemetry's global provider.
            meter_provider: where metrics go; without it, OpenTelemetry's global provider.

        Raises:
            RuntimeError: when the ``http`` extra is not installed.
            SinkError: when the spool cannot be used.
            ValueError: when an argument is not usable.
        """
        try:
            from cra_middleware.client.connection import Connection
            from cra_middleware.client.remote_runtime import RemoteRuntime
        except ImportError as error:
            raise RuntimeError("Runtime.connect needs httpx: pip install 'cra-middleware[http]'") from error
        connection = Connection(url, api_key, timeout_seconds=timeout_seconds, ca_file=ca_file)
        return RemoteRuntime(
            connection,
            on_unreachable=on_unreachable,
            spool=spool,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
        )

    @classmethod
    def from_env(cls) -> Runtime:
        """The runtime that the environment names: ``CRA_URL`` and ``CRA_API_KEY``, or ``CRA_ATLAS`` and ``CRA_TRACE``.

        Nothing else is read: no variable makes a runtime observe only, allow by default, or run without its server.

        Raises:
            AtlasError: when the Atlas has errors.
            RuntimeError: when the ``http`` extra is needed and not installed.
            SinkError: when the trace folder cannot be used.
            ValueError: when neither is named, or both are.
        """
        from cra_middleware.runtime import Runtime

        url, atlas = os.environ.get("CRA_URL"), os.environ.get("CRA_ATLAS")
        if url and (atlas or os.environ.get("CRA_TRACE")):
            raise ValueError("CRA_URL names a server, which has Atlases and traces: unset CRA_ATLAS and CRA_TRACE")
        if url:
            return cls.connect(url, api_key=os.environ.get("CRA_API_KEY"))
        if not atlas:
            raise ValueError("set CRA_URL (a server) or CRA_ATLAS (a folder or a file)")
        return Runtime(atlas, trace=os.environ.get("CRA_TRACE") or None)
