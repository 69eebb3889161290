"""pytest plugin: tests on several ranks, in threads and under mpirun, from one plain ``pytest``.

- A test that takes the fixture ``group`` runs on a local group and on 2, 3 and 4 threads.
- A test marked ``mpi`` runs under mpirun, once for each of ``mpi(sizes=(2, 3, 4))``; with ``group``
  it does both. Each of these is a test of its own: ``test_x[local]``, ``test_x[threads-3]``,
  ``test_x[mpi-2]``; ``-k mpi-2`` selects.
- ``mpirun -n 2 python -m pytest --with-mpi`` runs the tests for two ranks directly.

Inside a started rank the hooks of `mpi_rank` work, outside those of `mpi_parent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distgrad.distributed import ProcessGroup, local_group, mpi_group, run_ranks, world_from_env
from distgrad.distributed.default import set_thread_group
from distgrad.distributed.mpi import start_mpi
from distgrad.testing.mpi_parent import MpiParent
from distgrad.testing.mpi_rank import MpiRank
from distgrad.testing.worlds import DEFAULT_SIZES, IN_PROCESS, World, world_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin."""
    options = parser.getgroup("distgrad", "tests on several ranks")
    options.addoption("--mpirun", help="command that starts ranks (default: beside this Python)")
    options.addoption(
        "--mpi-timeout", type=float, default=60.0, help="seconds without any progress of a test"
    )
    options.addoption(
        "--mpi-grace", type=float, default=5.0, help="seconds a failed rank waits for the others"
    )
    options.addoption("--mpi-report", help="internal: folder where ranks write their reports")


def pytest_configure(config: pytest.Config) -> None:
    """Register the half of the plugin that this process needs."""
    config.addinivalue_line("markers", "mpi(sizes=(2, 3, 4)): runs under mpirun, once per size")
    if config.getoption("mpi_report") or (world_from_env().size or 1) > 1:
        config.pluginmanager.register(MpiRank(config), "distgrad-mpi-rank")
    else:
        config.pluginmanager.register(MpiParent(config), "distgrad-mpi-parent")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each world that a test runs in."""
    mark = metafunc.definition.get_closest_marker("mpi")
    worlds = IN_PROCESS if "group" in metafunc.fixturenames else ()
    if mark is not None:
        sizes = mark.kwargs.get("sizes", DEFAULT_SIZES)
        worlds += tuple(World("mpi", size) for size in sizes)
    if not worlds:
        return
    if "rank_world" not in metafunc.fixturenames:
        metafunc.fixturenames.append("rank_world")
    metafunc.parametrize("rank_world", worlds, indirect=True, ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Call the test once in each thread, where it runs on threads."""
    __tracebackhide__ = True
    world = world_of(pyfuncitem)
    if world is None or world.backend != "threads":
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    limit = pyfuncitem.config.getoption("mpi_timeout")

    def body(group: ProcessGroup) -> None:
        pyfuncitem.obj(**{**arguments, "group": group})

    run_ranks(world.size, body, timeout_s=limit)
    return True


@pytest.fixture
def rank_world(request: pytest.FixtureRequest) -> World:
    """The backend and number of ranks that this test runs on."""
    world: World = request.param
    return world


@pytest.fixture
def group(rank_world: World, pytestconfig: pytest.Config) -> Iterator[ProcessGroup | None]:
    """This rank's process group, new for each test, and its default group."""
    if rank_world.backend == "threads":
        yield None  # each thread gets its own from run_ranks
        return
    limit = pytestconfig.getoption("mpi_timeout") / 2  # so that the wait, not the job, gives up
    made: ProcessGroup = (
        local_group(limit)
        if rank_world.backend == "local"
        else mpi_group(start_mpi().COMM_WORLD, limit)
    )
    set_thread_group(made)
    yield made
    set_thread_group(None)
    made.close()


@pytest.fixture
def shared_tmp_path(tmp_path: Path, rank_world: World) -> Path:
    """A new folder, the same one on every rank."""
    if rank_world.backend != "mpi":
        return tmp_path
    shared: Path = start_mpi().COMM_WORLD.bcast(tmp_path)
    return shared
