"""Where ranges of committed versions lie, for who reads the data files by itself.

A whole batch is answered from the index's rows and the CRCs' arrays, column by column. A range is
widened to whole checksum blocks, so that the CRC of what is to be read is known without reading it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fs3.checksum import CHECKSUM_BLOCK_BYTES, Crcs, combine_blocks
from fs3.dataplane import FILE_NONE, LOCATE_RESULT
from fs3.errors import Code

from .datafiles import CLASS_SHIFT
from .interface import Rows

_SHIFT = CHECKSUM_BLOCK_BYTES.bit_length() - 1
_MASK = CHECKSUM_BLOCK_BYTES - 1

Column = npt.NDArray[np.int64]


def locate(
    table: npt.NDArray[np.void], crcs: Sequence[Crcs], rows: Rows, offsets: Column, lengths: Column
) -> npt.NDArray[np.void]:
    """See ``LocatingStore.locate``. ``table``: the index's; ``crcs``: those of each class."""
    versions = table[rows]  # each row is copied whole: it is one version, old or new
    known = (rows >= 0) & (versions["version"] != 0)
    sizes = np.where(known, versions["length"], 0).astype(np.int64)
    found = np.zeros(len(rows), LOCATE_RESULT)
    found["code"] = np.where(known, Code.OK, Code.NO_CHUNK)
    found["version"] = np.where(known, versions["version"], 0)
    found["file"] = FILE_NONE
    here = np.flatnonzero(offsets < sizes) if (offsets >= sizes).any() else slice(None)
    offsets, sizes, versions = offsets[here], sizes[here], versions[here]
    ends = np.minimum(offsets + lengths[here], sizes)
    starts = offsets & ~_MASK
    covered_ends = np.minimum((ends + _MASK) & ~_MASK, sizes)
    classes = versions["size_class"]
    some = ends > offsets
    found["length"][here] = np.where(some, ends - offsets, 0)
    found["file"][here] = np.where(some, classes, np.uint32(FILE_NONE))
    found["before"][here] = np.where(some, offsets - starts, 0)
    found["after"][here] = np.where(some, covered_ends - ends, 0)
    found["position"][here] = (
        versions["block"].astype(np.int64) << (CLASS_SHIFT + classes.astype(np.int64))
    ) + starts
    found["crc"][here] = _covered_crcs(versions, crcs, starts, covered_ends, sizes, some)
    return found


def _covered_crcs(
    versions: npt.NDArray[np.void],
    crcs: Sequence[Crcs],
    starts: Column,
    ends: Column,
    sizes: Column,
    some: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint32]:
    """The CRC of bytes ``starts`` to ``ends`` of each version, both at borders or at its end."""
    first, blocks, classes = starts >> _SHIFT, versions["block"], versions["size_class"]
    made = versions["tail"].copy()  # right where the range is a partial last checksum block
    single = ends - starts <= CHECKSUM_BLOCK_BYTES
    for size_class in np.unique(classes[some]).tolist():
        where = np.flatnonzero(
            some & single & (classes == size_class) & (ends - starts == CHECKSUM_BLOCK_BYTES)
        )
        made[where] = crcs[size_class][blocks[where], first[where]]
    if not single.all():
        whole = some & (starts == 0) & (ends == sizes)
        made = np.where(whole, versions["checksum"], made)
        for at in np.flatnonzero(some & ~single & ~whole).tolist():
            end_slot = int(ends[at]) >> _SHIFT  # of whole ones
            stored = crcs[classes[at]][blocks[at], int(first[at]) : end_slot].tolist()
            if ends[at] & _MASK:
                stored.append(int(versions["tail"][at]))
            made[at] = combine_blocks(stored, int(ends[at] - starts[at]))
    return made
