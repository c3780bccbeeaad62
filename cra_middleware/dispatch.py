"""The tools of a loop that somebody wrote by hand: each call is read, validated, decided, recorded, and then run.

An adapter for a model's API says what a call is and what form its answer has; what lies between is here.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import orjson
from pydantic import TypeAdapter, ValidationError, validate_call

from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool
from cra_middleware.errors import CallRefused
from cra_middleware.signatures import bind_arguments

_logger = logging.getLogger("cra_middleware")


class _About(TypedDict):
    call_id: str | None
    agent: str | None
    run: str | None


_Bound = tuple[tuple[object, ...], dict[str, object]]


@dataclass(frozen=True, slots=True)
class Said:
    """What a call came to: a tool's result, or a sentence for the model."""

    value: object
    is_error: bool

    @property
    def text(self) -> str:
        """The same as text."""
        if isinstance(self.value, str):
            return self.value
        return orjson.dumps(self.value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class DispatchedTool:
    """A function that a model may call by name."""

    def __init__(
        self,
        point: EnforcementPoint,
        fn: Callable[..., Any],
        name: str | None = None,
        description: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Description and schema are those of the function, if nothing is said.

        Raises:
            TypeError: when its annotations are none that arguments can be validated with.
        """
        self.fn: Callable[..., Any] = fn if inspect.isroutine(fn) else cast("Any", fn).__call__
        self.name: str = name if name is not None else getattr(fn, "__name__", type(fn).__name__)
        self.description = inspect.getdoc(fn) or "" if description is None else description
        self._validate = _validating(self.fn)
        adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", self._validate))
        self.schema: dict[str, Any] = adapter.json_schema() if schema is None else dict(schema)
        self.is_async = inspect.iscoroutinefunction(self.fn)
        self.governed: GovernedTool = point.tool(
            self.name, body=self.fn, description=self.description, schema=self.schema
        )

    def bind(self, given: object) -> _Bound:
        """What the function is to be called with.

        Raises:
            ValueError: when these are no arguments of it.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"the arguments are no object but a {type(given).__name__}")
        try:
            return self._validate(**given)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
            raise ValueError("; ".join(wrong)) from None


class Dispatcher:
    """Runs calls by name. Safe under threads and tasks."""

    def __init__(
        self, point: EnforcementPoint, tools: Iterable[DispatchedTool], *, agent: str | None, run: str | None
    ) -> None:
        """``agent`` is the caller's name, and ``run`` your id of the conversation, if it has one."""
        self._point = point
        self._tools = {tool.name: tool for tool in tools}
        self._agent = agent
        self._run = run

    def permitted(self) -> list[DispatchedTool]:
        """The tools that some call could be allowed to use: a model need not be shown the others."""
        session = self._point.session(run=self._run, agent=self._agent)
        return [tool for tool in self._tools.values() if tool.governed.is_shown(session)]

    @property
    def context_text(self) -> str:
        """The Atlas's documents, ready for a system prompt."""
        return self._point.session(run=self._run, agent=self._agent).context_text

    def end(self) -> None:
        """The conversation is over: its session ends, unless a person is still being asked in it."""
        self._point.end(self._run)

    def invoke(self, name: str, arguments: object, call_id: str | None = None) -> Any:
        """Run a call; ``arguments`` are a mapping, or JSON text.

        Raises:
            CallRefused: when the tool did not run. What the tool itself raises comes out as it is.
        """
        tool, call, (args, kwargs) = self._prepared(name, arguments, call_id)
        return call.run(functools.partial(_call, tool, args, kwargs))

    async def ainvoke(self, name: str, arguments: object, call_id: str | None = None) -> Any:
        """As ``invoke``, on an event loop; a function that is no coroutine function runs in a thread."""
        tool, call, (args, kwargs) = self._prepared(name, arguments, call_id)
        return await call.arun(functools.partial(_acall, tool, args, kwargs))

    def answer(self, name: str, arguments: object, call_id: str | None = None) -> Said:
        """As ``invoke``, with refusals and a tool's exceptions in words for the model."""
        try:
            return Said(self.invoke(name, arguments, call_id), False)
        except Exception as error:  # noqa: BLE001  the model is told of whatever a tool raised
            return _failed(name, error)

    async def aanswer(self, name: str, arguments: object, call_id: str | None = None) -> Said:
        """As ``answer``, on an event loop."""
        try:
            return Said(await self.ainvoke(name, arguments, call_id), False)
        except Exception as error:  # noqa: BLE001  the model is told of whatever a tool raised
            return _failed(name, error)

    def _prepared(
        self, name: str, arguments: object, call_id: str | None
    ) -> tuple[DispatchedTool, GovernedCall, _Bound]:
        tool = self._tools.get(name)
        about = _About(call_id=call_id, agent=self._agent, run=self._run)
        if tool is None:
            raise self._point.tool(name).missing(arguments, **about)
        given: object = None
        try:
            given = orjson.loads(arguments or b"{}") if isinstance(arguments, (str, bytes)) else arguments
            bound = tool.bind(given)
        except ValueError as error:  # broken JSON is one, too
            raise tool.governed.call(_named(given), **about).reject(str(error)) from None
        return tool, tool.governed.call(bind_arguments(tool.fn, *bound), **about), bound


def _validating(fn: Callable[..., Any]) -> Callable[..., _Bound]:
    """What ``fn`` would be called with, after validation by its annotations."""

    @functools.wraps(fn)
    def bound(*args: object, **kwargs: object) -> _Bound:
        return args, kwargs

    try:
        return cast("Callable[..., _Bound]", validate_call(bound))
    except Exception as error:  # pydantic raises many kinds for hints it cannot read
        raise TypeError(f"{getattr(fn, '__qualname__', fn)} cannot be a tool: {error}") from error


def _named(given: object) -> Mapping[str, object]:
    return given if isinstance(given, Mapping) else {}


def _call(tool: DispatchedTool, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    if tool.is_async:
        raise TypeError(f"{tool.name} is a coroutine function, which only the asynchronous call can run")
    return tool.fn(*args, **kwargs)


async def _acall(tool: DispatchedTool, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    if tool.is_async:
        return await cast("Awaitable[Any]", tool.fn(*args, **kwargs))
    return await asyncio.to_thread(tool.fn, *args, **kwargs)


def _failed(name: str, error: Exception) -> Said:
    if isinstance(error, CallRefused):
        return Said(str(error), True)
    _logger.warning("tool %s failed", name, exc_info=error)
    return Said(f"{name} failed: {type(error).__name__}: {error}", True)
