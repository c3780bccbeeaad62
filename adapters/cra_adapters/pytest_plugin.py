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

_SUFFIXES = (".yaml", ".yml", ".json")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("cra_atlas", "folder of the Atlas whose tests are run, and that cra_runtime decides by", default="")
    parser.addini("cra_project", "folder that $PROJECT stands for in that Atlas", default=".")


def pytest_configure(config: pytest.Config) -> None:
    """Add the Atlas's cases to a plain ``pytest``.

    Raises:
        pytest.UsageError: when there is no Atlas where ``cra_atlas`` says.
    """
    folder = _tests(config)
    if folder is None:
        return
    _check(config, folder)
    # whoever names files gets those; a plain `pytest` gets the Atlas's cases, too
    if folder.is_dir() and config.args_source is not pytest.Config.ArgsSource.ARGS:
        inside = [Path(config.invocation_params.dir, name).resolve() for name in config.args]
        if not any(folder.is_relative_to(name) for name in inside):
            config.args.append(str(folder))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    folder = _tests(parent.config)
    if folder is None or file_path.parent != folder or file_path.suffix not in _SUFFIXES:
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
    """Where the cases are: beside the manifest, which may be named itself."""
    name: str = config.getini("cra_atlas")
    if not name:
        return None
    atlas = Path(config.rootpath, name).resolve()
    return (atlas.parent if atlas.suffix in _SUFFIXES else atlas) / "tests"


def _check(config: pytest.Config, folder: Path) -> None:
    """A misspelt path must not be a green run without a case."""
    name = config.getini("cra_atlas")
    atlas = (config.rootpath / name).resolve()
    manifests = [atlas] if atlas.suffix in _SUFFIXES else [atlas / f"atlas{suffix}" for suffix in _SUFFIXES]
    if not any(manifest.is_file() for manifest in manifests):
        raise pytest.UsageError(f"cra_atlas = {name}: there is no Atlas in {atlas}; correct the path")
    if not (folder.is_dir() and any(file.suffix in _SUFFIXES for file in folder.iterdir())):
        text = f"cra_atlas = {name}: the Atlas has no tests; write cases into {folder}"
        config.issue_config_time_warning(pytest.PytestConfigWarning(text), stacklevel=2)
