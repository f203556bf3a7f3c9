"""Which fields the messages of image sets have: what CRIU always writes, ferry has to write as well."""

import re


def kind_of(file_name):
    """core-25061.img as core: all of one kind count together."""
    return re.sub(r"(-[0-9a-f]+)?(\.tar\.gz)?\.img$", "", file_name) if not file_name.startswith("tmpfs-dev") else "tmpfs-dev"


def _walk(path, value, found):
    if isinstance(value, dict):
        # A file entry is one of many kinds of messages: its type is part of where it stands.
        here = f"{path}<{value['type']}>" if path == "files" and "type" in value else path
        found.setdefault(here, []).append(frozenset(value))
        for name, inner in value.items():
            _walk(f"{here}.{name}", inner, found)
    elif isinstance(value, list):
        for inner in value:
            _walk(path, inner, found)


def messages(shown):
    """For each place where messages stand, the field names of every one of them."""
    found = {}
    for name, image in shown.items():
        for entry in image.get("entries", []):
            _walk(kind_of(name), entry, found)
    return found


def always(sets):
    """For each place, the fields that every message in all these sets has."""
    together = {}
    for shown in sets:
        for path, fields in messages(shown).items():
            together.setdefault(path, []).extend(fields)
    return {path: frozenset.intersection(*fields) for path, fields in together.items()}


def missing(shown, wanted, exceptions):
    """Sentences about fields that a message of `shown` lacks although `wanted` has them everywhere."""
    said = set()
    for path, fields in messages(shown).items():
        for one in fields:
            for name in wanted.get(path, frozenset()) - one:
                if f"{path}.{name}" not in exceptions:
                    said.add(f"{path}.{name}")
    return sorted(said)
