"""A look at a folder of posters before it is built: how it is understood, and what is wrong.

python -m poster_tfds.look FOLDER
python -m poster_tfds.look FOLDER --config='{"csv": "films.csv"}' --json
"""

import json
import sys

from absl import app, flags, logging

from poster_tfds import faults, inspection, settings

_CONFIG = flags.DEFINE_string("config", "{}", "Settings, as `tfds build` takes them.")
_JSON = flags.DEFINE_bool("json", False, "Print what was found as JSON.")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("Give one folder: python -m poster_tfds.look FOLDER")
    logging.set_verbosity(logging.ERROR)
    try:
        facts = inspection.inspect_folder(argv[1], settings.parse(_CONFIG.value))
    except faults.UserError as error:
        sys.exit(str(error))
    in_json = json.dumps(facts, indent=2, ensure_ascii=False)
    print(in_json if _JSON.value else inspection.in_words(facts))


if __name__ == "__main__":
    app.run(main)
