"""From what a dataset was built, so that a change of it does not go unseen."""

from etils import epath

from poster_tfds import faults, image_files, settings
from poster_tfds.annotations import folder, text_files

# Where files are, which differs between machines that build the same.
_PLACES = ("csv", "images")


def describe(directory: epath.Path, config) -> dict:
    """Returns the digests of annotations and images in a folder, and the settings."""
    chosen = settings.values(config)
    return {
        "annotations": text_files.digest(folder.find_annotations(directory, config.csv)),
        "images": image_files.digest(folder.find_images(directory, config.images)),
        "settings": {name: chosen[name] for name in chosen if name not in _PLACES},
    }


def may_repeat_posters(builder) -> bool:
    """Returns whether two posters of a built dataset may have the same bytes."""
    return not builder.info.metadata["origin"]["settings"]["drop_duplicates"]


def check_unchanged(builder, directory: epath.Path) -> None:
    """Checks that a built dataset is of the annotations, images and settings that it would be now.

    Raises:
        faults.UserError: it is not; the message says what differs and how to build anew.
    """
    before = builder.info.metadata.get("origin")
    if not before or builder.builder_config.num_synthetic:  # Built without examples, or drawn.
        return
    now = describe(directory, builder.builder_config)
    changes = []
    if before["annotations"] != now["annotations"]:
        path = folder.find_annotations(directory, builder.builder_config.csv)
        changes.append(f"{path} has changed")
    if (images := before["images"]) != now["images"]:
        old, new = (f"{i['files']} images of {i['bytes']} bytes" for i in (images, now["images"]))
        changes.append(f"{old} are now {new}" if old != new else "images were renamed or replaced")
    changes += [
        f"{name} was {value!r} and is {now['settings'][name]!r}"
        for name, value in before["settings"].items()
        if now["settings"][name] != value
    ]
    if changes:
        raise faults.UserError(
            f"{builder.data_path} is built already, but not from this: {'; '.join(changes)}.\n"
            "Nothing was built. Build into another --data_dir, or add --overwrite, which deletes "
            "the dataset that is there before it builds the new one."
        )
