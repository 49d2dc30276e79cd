"""FFHQ by its ffhq-dataset-v2.json: checksums verified, authors and licences kept.

ffhq-dataset-v2.json                {"0": {"metadata": …, "image": …, "in_the_wild": …}, …}
images1024x1024/00000/00000.png     aligned, 1024 px
in-the-wild-images/00000/00000.png  as photographed, for --crop face
thumbnails128x128/00000/00000.png
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from data_prep import storage
from data_prep.images import BadImageError
from data_prep.sources.base import Entry, SourceError, checked
from data_prep.sources.folders import Folder

FILE = "ffhq-dataset-v2.json"
_FORMS = ("image", "in_the_wild", "thumbnail")


@dataclass(frozen=True, kw_only=True)
class Ffhq(Folder):
    """Files of a folder, with the MD5 that the list gives."""

    def _read(self, entry: Entry) -> bytes:
        content = super()._read(entry)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != entry.stamp:
            raise BadImageError(f"damaged: its MD5 is another than {FILE} says")
        return content


def ffhq_entries(url: str, include: str) -> Iterator[Entry]:
    """All images of the first form of FFHQ that is there and matches `include`.

    Raises:
        SourceError: The list is damaged, or no image is there.
    """
    list_url = storage.join(url, FILE)
    try:
        records: list[dict[str, Any]] = list(json.loads(storage.read_bytes(list_url)).values())
        form = _form(url, records, include)
        for record in records:
            file = record[form]
            yield checked(
                Entry(
                    str(file["file_path"]),
                    int(file["file_size"]),
                    str(file["file_md5"]),
                    metadata={str(key): value for key, value in record["metadata"].items()},
                )
            )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        if isinstance(err, SourceError):
            raise
        raise SourceError(f"{list_url} is not the list of FFHQ: {err!r}; get it again") from err


def _form(url: str, records: list[dict[str, Any]], include: str) -> str:
    for form in _FORMS:
        paths = [str(record[form]["file_path"]) for record in records]
        chosen = [path for path in paths if not include or fnmatchcase(path, include)]
        if chosen and storage.exists(storage.join(url, PurePosixPath(chosen[0]).parts[0])):
            return form
    raise SourceError(
        f"source {url} holds {FILE}, but none of images1024x1024, in-the-wild-images and "
        f"thumbnails128x128 beside it; put one of them there"
    )
