"""Where images come from: folders, archives, LMDB, TFRecords and data sets, here or in a store.

Each form has a module with a `Source` and what lists it; `list_sources` finds out which one a path
or URL is. Nothing is extracted: archives are read in memory member by member, so a member cannot be
written anywhere, whatever its name. The order of a listing is that of the sorted names, whatever
the order on disk or on the command line.
"""

from data_prep.sources.base import Entry, Listing, Source, SourceError, printable
from data_prep.sources.forms import list_source, list_sources

__all__ = [
    "Entry",
    "Listing",
    "Source",
    "SourceError",
    "list_source",
    "list_sources",
    "printable",
]
