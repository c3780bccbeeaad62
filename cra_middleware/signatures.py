"""The arguments that a function's body receives, by name: defaults applied, ``**kwargs`` flattened."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    _signature = partial(inspect.signature, annotation_format=Format.FORWARDREF)
    _annotations = partial(get_annotations, format=Format.FORWARDREF)
else:
    _signature = inspect.signature
    _annotations = inspect.get_annotations

Arguments = dict[str, object]
Binder = Callable[[tuple[object, ...], Mapping[str, object]], Arguments]


def describe(fn: object) -> str:
    """Module and qualified name: how a trace names a tool."""
    fn = getattr(fn, "func", fn) if not hasattr(fn, "__qualname__") else fn  # functools.partial
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return f"{getattr(fn, '__module__', None) or type(fn).__module__}.{name}"


def signature_of(fn: Callable[..., object]) -> inspect.Signature:
    """The signature of ``fn``, also where an annotation names what is defined later, or only for a type checker.

    Python 3.14 evaluates annotations when they are read, and a call reads none: nor may its decision need them.

    Raises:
        TypeError: when ``fn`` cannot be called.
        ValueError: when it has no signature, as some builtins.
    """
    return _signature(fn)


def annotations_of(fn: Callable[..., object]) -> dict[str, object]:
    """The annotations of ``fn`` as they were written, none for a callable without; what is not defined stays a name."""
    return dict(_annotations(fn))


def bind_arguments(fn: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> Arguments:
    """What the body of ``fn`` receives when it is called with ``args`` and ``kwargs``.

    Raises:
        TypeError: when they do not fit its signature, as the call itself would.
    """
    try:
        binder = _known_binder(fn)
    except TypeError:  # an unhashable callable
        binder = make_binder(fn)
    return binder(args, kwargs)


def make_binder(fn: Callable[..., object], *, in_class: bool = False) -> Binder:
    """Compile the binding of one function; ``in_class`` says that its first parameter may be the instance."""
    try:
        parameters = list(signature_of(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature: positions are all there is
        return lambda args, kwargs: {**({"args": list(args)} if args else {}), **kwargs}
    instance = in_class and bool(parameters) and parameters[0].name in ("self", "cls", "mcs")
    plain = all(parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) for parameter in parameters)
    slow = _slow_binder(fn, parameters[0].name if instance else None)
    if not plain:
        return slow
    names = tuple(parameter.name for parameter in parameters)
    wanted = frozenset(names[1:] if instance else names)
    positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    skip = int(instance)

    def bind(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Arguments:
        if len(args) == skip and kwargs.keys() == wanted:  # everything by keyword, the usual way of a framework
            return dict(kwargs)
        if not kwargs and len(args) == len(names) == positional:
            return dict(zip(names[skip:], args[skip:], strict=True))
        return slow(args, kwargs)

    return bind


_known_binder = lru_cache(maxsize=1024)(make_binder)


def _slow_binder(fn: Callable[..., object], instance: str | None) -> Binder:
    signature = signature_of(fn)
    star = next((item.name for item in signature.parameters.values() if item.kind is item.VAR_POSITIONAL), None)
    double = next((item.name for item in signature.parameters.values() if item.kind is item.VAR_KEYWORD), None)

    def bind(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Arguments:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if instance is not None:
            arguments.pop(instance, None)
        if star is not None:
            arguments[star] = list(arguments[star])
        if double is not None:
            extra = arguments.pop(double)
            twice = arguments.keys() & extra.keys()
            if twice:  # f(x, /, **kw) called as f(1, x=2): one name cannot stand for two values
                raise TypeError(f"argument {min(twice)!r} is given both by position and by keyword")
            arguments.update(extra)
        return arguments

    return bind
