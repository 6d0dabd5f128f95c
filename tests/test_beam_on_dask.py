"""The Beam engine on a cluster that is not Beam's own: Dask's, with two processes on loopback."""

import warnings

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tests import conftest, test_build_robustness
from tests.test_dataset_builder import posters, sha256_of_files  # noqa: F401


@pytest.fixture
def cluster():
    try:
        from distributed import LocalCluster
    except ImportError:
        message = "Dask is not installed (pip install 'apache-beam[dask]'): DaskRunner: NOT TESTED"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def test_a_dask_cluster_writes_the_same_bytes(cluster, posters, tmp_path):  # noqa: F811
    from tests import dask_runner

    options = PipelineOptions([f"--dask_client_address={cluster.scheduler_address}"])
    runner = dask_runner.CorrectedDaskRunner()
    test_build_robustness.damage_csv(posters)
    one, dask = tmp_path / "one", tmp_path / "dask"
    config = {**test_build_robustness.SKIP, "drop_duplicates": True}
    conftest.build(posters, one, config)
    conftest.build(posters, dask, config, beam_runner=runner, beam_options=options)
    one, dask = (sha256_of_files(d / "poster_tfds/mine/1.0.0") for d in (one, dask))
    assert len(one) > 20
    assert one == dask
