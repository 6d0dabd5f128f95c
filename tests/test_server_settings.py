"""The server's numbers belong together, and a user's changes to them stay."""

import re

import pytest

pytest.importorskip("tensorflow_serving", reason="NOT TESTED: needs the extra `serving`")

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from export import server_settings
from tests import conftest

COLUMNS = (("cpu", 2), ("cpu", 8), ("cpu", 32), ("gpu", 8), ("gpu", 32))


@pytest.mark.parametrize(("profile", "cores"), [*COLUMNS, ("cpu", 1), ("gpu", 1), ("cpu", 192)])
def test_the_numbers_fit_together(profile, cores):
    capacity = server_settings.plan_capacity(profile, cores)
    # Single images fill every batch in work, and as many wait.
    assert capacity.requests_in_flight == 2 * 32 * capacity.num_batch_threads
    assert capacity.requests_in_flight < capacity.grpc_max_threads
    assert 1 <= capacity.max_enqueued_batches <= capacity.requests_in_flight
    seconds_a_batch = 32 * {"cpu": 0.025, "gpu": 0.0015}[profile] / cores
    assert capacity.max_enqueued_batches * seconds_a_batch <= 30
    assert 1000 <= capacity.wait_micros <= 25_000


def test_readmes_table_is_computed():
    readme = (conftest.PROJECT / "export/README.md").read_text()
    table = readme.split("| | 2 cores |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE)
    documented = {name: [int(cell) for cell in cells.split(" | ")] for name, cells in rows}
    planned = [server_settings.plan_capacity(*column) for column in COLUMNS]
    assert documented == {
        "max_batch_size": [server_settings.MAX_BATCH_SIZE] * len(COLUMNS),
        "batch_timeout_micros": [capacity.wait_micros for capacity in planned],
        "num_batch_threads": [capacity.num_batch_threads for capacity in planned],
        "max_enqueued_batches": [capacity.max_enqueued_batches for capacity in planned],
        "--rest_api_num_threads": [capacity.requests_in_flight for capacity in planned],
        "--grpc_max_threads": [capacity.grpc_max_threads for capacity in planned],
    }


def test_the_files_are_of_the_servers_form(tmp_path):
    directory = tmp_path / "my posters"
    directory.mkdir()
    server_settings.write_server_files(directory, "cpu", 8)
    text = (directory / "batching.config").read_text()
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == [
        "max_batch_size { value: 32 }",
        "batch_timeout_micros { value: 3125 }",
        "num_batch_threads { value: 8 }",
        "max_enqueued_batches { value: 300 }",
    ]
    models = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((directory / "models.config").read_text(), models)
    (model,) = models.model_config_list.config
    assert (model.name, model.base_path) == ("my posters", str(directory))


def test_a_users_changes_stay_until_other_cores_are_asked_for(tmp_path):
    def write(profile, cores, replace=False):
        server_settings.write_server_files(tmp_path, profile, cores, replace)
        return [(tmp_path / name).read_text() for name in ("batching.config", "server_flags.txt")]

    written = write("cpu", 2)
    assert "num_batch_threads { value: 2 }" in written[0]
    assert "--grpc_max_threads=136" in written[1]
    (tmp_path / "batching.config").write_text("mine")
    (tmp_path / "models.config").write_text("mine too")
    assert write("cpu", 4) == ["mine", written[1]]
    batching, flags = write("gpu", 8, replace=True)
    assert "num_batch_threads { value: 2 }" in batching
    assert "--grpc_max_threads=160" in flags
    assert (tmp_path / "models.config").read_text() == "mine too"
