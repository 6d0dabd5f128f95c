"""Command line of the export.

python -m export --run_dir=runs/imdb --export_dir=exports/imdb
"""

import sys

from absl import flags

from export import server_settings
from trainer import command_line, config as config_lib

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run to export.", required=True)
_EXPORT_DIR = flags.DEFINE_string(
    "export_dir", None, "Directory of versions; a new one is added to it.", required=True
)
_TOP_K = flags.DEFINE_integer(
    "top_k", 5, "Genres that the signature `top_k` answers with.", lower_bound=1
)
_MAX_IMAGE_BYTES = flags.DEFINE_integer(
    "max_image_bytes", 32_000_000, "Larger files are answered with an error.", lower_bound=1
)
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    25_000_000,
    "Images with more pixels are answered with an error; a pixel takes 3 bytes of memory while it "
    "is decoded and 15 while it is resized.",
    lower_bound=1,
)
_TTA = config_lib.define_tta_flag()
_FORMAT = flags.DEFINE_list(
    "format",
    ["saved_model"],
    "What the version has, separated by commas: saved_model (always), tflite, tflite_int8 (in "
    "integers, with ranges from 100 posters of train), onnx.",
)
_KEEP_VERSIONS = flags.DEFINE_integer(
    "keep_versions", 0, "Newest versions to keep; 0: all.", lower_bound=0
)
_CORES = flags.DEFINE_integer(
    "cores",
    0,
    "Cores of the server's machine, for the numbers of batching.config and server_flags.txt; 0: "
    "those of this one.",
    lower_bound=0,
)
_BATCHING_PROFILE = flags.DEFINE_enum(
    "batching_profile",
    server_settings.CPU,
    server_settings.PROFILES,
    "Where the server computes, for the same numbers.",
)


def main(arguments: list[str]) -> None:
    del arguments
    command_line.import_tensorflow()
    from export import loading, saved_model
    from poster_tfds import directory_lock, machine
    from trainer.decisions import decision
    from trainer.run import directory

    try:
        version = saved_model.export_saved_model(
            _RUN_DIR.value,
            _EXPORT_DIR.value,
            top_k=_TOP_K.value,
            limits=loading.Limits(_MAX_IMAGE_BYTES.value, _MAX_IMAGE_PIXELS.value),
            tta=_TTA.value,
            formats=_FORMAT.value,
            keep_versions=_KEEP_VERSIONS.value,
        )
    except (config_lib.UsageError, directory_lock.HeldError) as error:
        sys.exit(str(error))
    server_settings.write_server_files(
        _EXPORT_DIR.value,
        _BATCHING_PROFILE.value,
        _CORES.value or machine.num_cores(),
        replace=_CORES.present or _BATCHING_PROFILE.present,
    )
    thresholds = decision.read(version / directory.THRESHOLDS)
    print(f"Published {version}\nThresholds: {thresholds.how}")


if __name__ == "__main__":
    command_line.run(main)
