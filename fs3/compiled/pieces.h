/* Reading pieces of files into memory and comparing them with their checksums. See pieces.c. */

#ifndef FS3_PIECES_H
#define FS3_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define EDGE_BYTES_MAX (64u << 10) /* of `before` and of `after` */
#define IN_MEMORY (-2)             /* as a descriptor: the bytes are in the parts already */

/* `before + length + after` bytes at `position` have the CRC `expected`; the `length` in the middle
 * fill the `parts`, in order. The caller has checked that `before` and `after` are at most EDGE_BYTES_MAX, that
 * the end is at most INT64_MAX, and that a piece IN_MEMORY has no edges. */
struct piece {
    int descriptor;
    uint32_t expected, before, length, after;
    uint64_t position;
    const struct iovec *parts; /* as long as `length`, together */
    size_t part_count;
    /* Results. The piece is good if `error` and `missing` are 0 and `found` is as expected. */
    int error;           /* errno, or 0 */
    uint64_t missing;    /* bytes, because the file ends before */
    uint32_t found;      /* CRC of all of it */
    uint32_t wanted_crc; /* CRC of what is in the parts, if `wants_crcs` */
};

/* Read and check them all. `split`: let a second thread help if there is much to do.
 * Returns false if there is no memory for it. */
bool read_pieces(struct piece *pieces, size_t count, bool split, bool wants_crcs);

/* Must be called once, first. */
void prepare_helper(void);

#endif
