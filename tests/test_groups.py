"""Groups of tests stay together when several workers run the suite; see ``conftest``."""

import pytest

pytestmark = pytest.mark.xdist_group("a_group")


def test_the_scheduler_is_told_the_group(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process runs everything")
    assert request.node.nodeid.endswith("@a_group")


@pytest.mark.parametrize("number", range(6))
def test_one_worker_runs_all_of_it(
    number: int, worker_id: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each leaves its worker's name where every worker sees it."""
    common = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        common = common.parent
    (common / f"a-group-{worker_id}").touch()
    assert len(list(common.glob("a-group-*"))) == 1
