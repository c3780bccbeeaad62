"""For pytest: an Atlas's own cases as tests, and fixtures for tests of governed code.

    [tool.pytest.ini_options]
    cra_atlas = "atlases/support"

collects the cases in ``atlases/support/tests/*.yaml``, and gives ``cra_runtime`` (a runtime with that Atlas, its trace
in memory) and ``cra_calls`` (what was decided in it): ``cra_calls.assert_denied("refund.create")``.

Nothing of the package is imported before one of these is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cra_middleware import Runtime
    from cra_middleware.testing import MemorySink, RecordedCalls


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("cra_atlas", "folder of the Atlas whose tests are run, and that cra_runtime decides by", default="")
    parser.addini("cra_project", "folder that $PROJECT stands for in that Atlas", default=".")


def pytest_configure(config: pytest.Config) -> None:
    folder = _tests(config)
    # whoever names files gets those; a plain `pytest` gets the Atlas's cases, too
    if folder is not None and folder.is_dir() and config.args_source is not pytest.Config.ArgsSource.ARGS:
        inside = [Path(config.invocation_params.dir, name).resolve() for name in config.args]
        if not any(folder.is_relative_to(name) for name in inside):
            config.args.append(str(folder))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    folder = _tests(parent.config)
    if folder is None or file_path.parent != folder or file_path.suffix not in (".yaml", ".yml", ".json"):
        return None
    made: pytest.Collector = AtlasFile.from_parent(parent, path=file_path)
    return made


class AtlasFile(pytest.File):
    """One file of cases."""

    def collect(self) -> Iterator[pytest.Item]:
        from cra_middleware.testing import read_case_file

        for number, case in enumerate(read_case_file(self.path), 1):
            yield AtlasCase.from_parent(self, name=f"{number} {case.title}", case=case)


class AtlasCase(pytest.Item):
    """One case."""

    def __init__(self, *, case: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case

    def runtest(self) -> None:
        from cra_middleware.testing import decide_case

        told = decide_case(self.case, _atlas(self.config), _project(self.config))
        if told.difference is not None:
            raise CaseFailedError(told.difference)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, CaseFailedError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


class CaseFailedError(Exception):
    """A call is not decided as its case says."""


@pytest.fixture
def cra_sink() -> MemorySink:
    """Where ``cra_runtime`` writes its trace."""
    from cra_middleware.testing import MemorySink

    return MemorySink()


@pytest.fixture
def cra_runtime(request: pytest.FixtureRequest, cra_sink: MemorySink) -> Iterator[Runtime]:
    """A runtime with the Atlas of the ini option ``cra_atlas``; its trace is in memory."""
    from cra_middleware import Runtime

    with Runtime(_atlas(request.config), trace=cra_sink, project=_project(request.config)) as runtime:
        yield runtime


@pytest.fixture
def cra_calls(cra_sink: MemorySink) -> RecordedCalls:
    """What was decided in ``cra_runtime``: ``assert_allowed``, ``assert_denied``, ``assert_asked``."""
    from cra_middleware.testing import RecordedCalls

    return RecordedCalls(cra_sink)


def _atlas(config: pytest.Config) -> str:
    name = config.getini("cra_atlas")
    if not name:
        raise pytest.UsageError('name the Atlas in pytest\'s configuration: cra_atlas = "atlases/support"')
    return str(config.rootpath / name)


def _project(config: pytest.Config) -> str:
    return str(config.rootpath / config.getini("cra_project"))


def _tests(config: pytest.Config) -> Path | None:
    name = config.getini("cra_atlas")
    return (config.rootpath / name / "tests").resolve() if name else None
