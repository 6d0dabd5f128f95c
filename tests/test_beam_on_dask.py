"""The Beam engine on a cluster that is not Beam's own: Dask's, with two processes on loopback."""

import warnings

import pytest

from tests import conftest, test_build_robustness
from tests.test_dataset_builder import posters, sha256_of_files  # noqa: F401


@pytest.fixture
def runner():
    try:
        from tests import dask_runner
    except ImportError:
        message = "Dask is not installed (pip install 'apache-beam[dask]'): DaskRunner: NOT TESTED"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return dask_runner.CorrectedDaskRunner()


def test_a_dask_cluster_writes_the_same_bytes(runner, posters, tmp_path):  # noqa: F811
    test_build_robustness.damage_csv(posters)
    one, dask = tmp_path / "one", tmp_path / "dask"
    config = {**test_build_robustness.SKIP, "drop_duplicates": True}
    conftest.build(posters, one, config)
    conftest.build(posters, dask, config, beam_runner=runner)
    one, dask = (sha256_of_files(d / "poster_tfds/mine/1.0.0") for d in (one, dask))
    assert len(one) > 20
    assert one == dask
