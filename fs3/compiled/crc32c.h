/* CRC32C (Castagnoli), as fast as the CPU can. See crc32c.c. */

#ifndef FS3_CRC32C_H
#define FS3_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Must be called first, once. Returns how many ways of computing CRCs this CPU has: 0 to 2. If it
 * has none, nothing else here may be called; else the last, the fastest, is used. */
int crc32c_prepare(void);

/* Use way 1 or, if there is one, way 2. For tests and measurements. */
void crc32c_use(int way);

/* The CRC of `length` bytes that follow a message with this `crc` (0: there is none). */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length);

/* The CRC of a || b, from those of a and b and the length of b in bytes. */
uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

#endif
