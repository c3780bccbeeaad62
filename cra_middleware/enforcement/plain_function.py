"""A plain function that is decided each time it is called, for frameworks whose tools are functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from cra_middleware.enforcement.governed_call import GovernedCall
from cra_middleware.errors import CallRefused
from cra_middleware.signatures import bind_arguments


def govern_function(
    fn: Callable[..., Any],
    prepare: Callable[[dict[str, object]], GovernedCall],
    refused: Callable[[CallRefused], Any],
) -> Callable[..., Any]:
    """``fn``, decided each time it is called; a coroutine function stays one, and signature and hints stay.

    Args:
        fn: a function or a coroutine function.
        prepare: makes the call from the arguments that the body of ``fn`` gets, defaults included.
        refused: what the framework is given instead of a result; it may raise.
    """

    def asked(args: tuple[object, ...], kwargs: dict[str, object]) -> GovernedCall:
        try:
            arguments = bind_arguments(fn, args, kwargs)
        except TypeError as error:
            raise prepare(dict(kwargs)).reject(str(error)) from None
        return prepare(arguments)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def governed_coroutine(*args: Any, **kwargs: Any) -> Any:
            try:
                return await asked(args, kwargs).arun(lambda: fn(*args, **kwargs))
            except CallRefused as refusal:
                return refused(refusal)

        return governed_coroutine

    @functools.wraps(fn)
    def governed_function(*args: Any, **kwargs: Any) -> Any:
        try:
            return asked(args, kwargs).run(lambda: fn(*args, **kwargs))
        except CallRefused as refusal:
            return refused(refusal)

    return governed_function
