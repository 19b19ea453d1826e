/* CRC32C in one of two ways, the first that the CPU can.
 *
 * A message is a polynomial over GF(2); its CRC is that polynomial times x^32 modulo P.
 *
 * Folding (x86-64 with AVX-512 and VPCLMULQDQ): 128 bits in front of a message may be replaced by
 * anything congruent to them modulo P. Moved forward by D bits they are (low * x^(64+D) +
 * high * x^D) mod P, two products of 64 bits, which lie on top of the bits there and are added to
 * them: they are "folded" in. One instruction does four such products, and four of those at a time
 * keep the multiplier busy. At the end 128 bits are left, for the CRC32C instruction to reduce.
 *
 * Three streams (any x86-64 since 2010, ARMv8): the CRC32C instruction takes 8 bytes per cycle but
 * answers after three cycles, so three stretches of a message are worked at in turn. A product with
 * x^n carries the CRC of one across those behind it.
 *
 * Both from V. Gopal and others at Intel: "Fast CRC Computation for Generic Polynomials Using
 * PCLMULQDQ Instruction" (2009) and "Fast CRC Computation for iSCSI Polynomial Using CRC32
 * Instruction" (2011); the last step of folding is by instruction here, not by Barrett's reduction.
 *
 * CRC32C is defined on reflected bits: the first bit of a message, its highest power, is the lowest
 * bit of a register. So a CRC's bit 31 is the coefficient of x^0, and a product of two reflected
 * values comes out one power of x too high for its register, which the constants below make
 * up for. They are computed at start, so that nobody needs to trust a table.
 */

#include "crc32c.h"

#include <stdbool.h>
#include <string.h>

#define POLYNOMIAL_REFLECTED 0x82F63B78u
#define ONE 0x80000000u /* x^0 */

static uint32_t powers[64]; /* x^(2^i) mod P */

static uint32_t times(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = ONE; bit; bit >>= 1) {
        if (a & bit)
            product ^= b;
        b = b >> 1 ^ (b & 1 ? POLYNOMIAL_REFLECTED : 0);
    }
    return product;
}

static uint32_t x_to_the(uint64_t exponent)
{
    uint32_t product = ONE;
    for (int i = 0; exponent; exponent >>= 1, i++)
        if (exponent & 1)
            product = times(powers[i], product);
    return product;
}

uint32_t crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b)
{
    return crc_a ? times(x_to_the(length_b * 8), crc_a) ^ crc_b : crc_b;
}

#if defined(__x86_64__)

#include <immintrin.h>

#define CRC32C __attribute__((target("sse4.2,pclmul")))

static bool has_instruction(void)
{
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

CRC32C static inline uint32_t add_word(uint32_t state, uint64_t word)
{
    return (uint32_t)_mm_crc32_u64(state, word);
}

CRC32C static inline uint32_t add_byte(uint32_t state, uint8_t byte)
{
    return _mm_crc32_u8(state, byte);
}

CRC32C static inline uint64_t product(uint32_t a, uint32_t b)
{
    __m128i low = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a), _mm_cvtsi32_si128((int)b), 0);
    return (uint64_t)_mm_cvtsi128_si64(low);
}

#elif defined(__aarch64__) && defined(__linux__)

#include <arm_acle.h>
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#define CRC32C __attribute__((target("+crc+crypto")))

static bool has_instruction(void)
{
    unsigned long has = getauxval(AT_HWCAP);
    return (has & HWCAP_CRC32) && (has & HWCAP_PMULL);
}

CRC32C static inline uint32_t add_word(uint32_t state, uint64_t word)
{
    return __crc32cd(state, word);
}

CRC32C static inline uint32_t add_byte(uint32_t state, uint8_t byte)
{
    return __crc32cb(state, byte);
}

CRC32C static inline uint64_t product(uint32_t a, uint32_t b)
{
    return vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64(a, b)), 0);
}

#else
#error "fs3 knows no CRC32C instruction of this CPU, and does without this extension"
#endif

#define STREAM_WORDS 85 /* three streams are just under 2 KiB: little is left of 4, 16 or 64 KiB */

static uint32_t across_one, across_two; /* streams */

CRC32C static inline uint64_t word_at(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

CRC32C static uint32_t by_streams(uint32_t state, const uint8_t *bytes, size_t length)
{
    const size_t stream = STREAM_WORDS * 8;
    for (; length >= 3 * stream; bytes += 3 * stream, length -= 3 * stream) {
        uint32_t second = 0, third = 0;
        for (const uint8_t *at = bytes; at < bytes + stream; at += 8) {
            state = add_word(state, word_at(at));
            second = add_word(second, word_at(at + stream));
            third = add_word(third, word_at(at + 2 * stream));
        }
        state = add_word(0, product(state, across_two) ^ product(second, across_one)) ^ third;
    }
    for (; length >= 8; bytes += 8, length -= 8)
        state = add_word(state, word_at(bytes));
    for (; length; bytes++, length--)
        state = add_byte(state, *bytes);
    return state;
}

static void prepare_streams(void)
{
    /* Of the product's powers of x, add_word() adds 32, and reflection 1. */
    across_one = x_to_the(STREAM_WORDS * 64 - 33);
    across_two = x_to_the(2 * STREAM_WORDS * 64 - 33);
}

#if defined(__x86_64__)

#define FOLDING __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

/* What the low and the high half of 128 bits are multiplied with to move them `bits` forward. */
struct key {
    uint64_t low, high;
};

static struct key key_of(unsigned bits)
{
    struct key key = {(uint64_t)x_to_the(bits + 63) << 32, (uint64_t)x_to_the(bits - 1) << 32};
    return key;
}

static struct key by_256[4], by_64[4]; /* bytes; the same for each quarter of a vector */
static struct key to_last[4]; /* from each quarter to the last one, which stays where it is */

FOLDING static inline __m512i fold(__m512i x, __m512i key, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(x, key, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(x, key, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* exclusive or of all three */
}

FOLDING static uint32_t by_folding(uint32_t state, const uint8_t *bytes, size_t length)
{
    if (length >= 256) {
        __m512i key = _mm512_loadu_si512(by_256), next = _mm512_loadu_si512(by_64);
        __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state));
        __m512i a = _mm512_xor_si512(start, _mm512_loadu_si512(bytes));
        __m512i b = _mm512_loadu_si512(bytes + 64), c = _mm512_loadu_si512(bytes + 128);
        __m512i d = _mm512_loadu_si512(bytes + 192);
        for (bytes += 256, length -= 256; length >= 256; bytes += 256, length -= 256) {
            a = fold(a, key, _mm512_loadu_si512(bytes));
            b = fold(b, key, _mm512_loadu_si512(bytes + 64));
            c = fold(c, key, _mm512_loadu_si512(bytes + 128));
            d = fold(d, key, _mm512_loadu_si512(bytes + 192));
        }
        d = fold(fold(fold(a, next, b), next, c), next, d);
        uint64_t rest[8], moved[8];
        _mm512_storeu_si512(rest, d);
        _mm512_storeu_si512(moved, fold(d, _mm512_loadu_si512(to_last), _mm512_setzero_si512()));
        uint64_t low = rest[6] ^ moved[0] ^ moved[2] ^ moved[4];
        uint64_t high = rest[7] ^ moved[1] ^ moved[3] ^ moved[5];
        state = add_word(add_word(0, low), high);
        _mm256_zeroupper(); /* or 128-bit code after us is slow on some CPUs */
    }
    return by_streams(state, bytes, length);
}

static bool prepare_folding(void)
{
    for (int i = 0; i < 4; i++) {
        by_256[i] = key_of(256 * 8);
        by_64[i] = key_of(64 * 8);
        if (i < 3)
            to_last[i] = key_of((unsigned)(3 - i) * 128);
    }
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
}

#else

#define by_folding by_streams

static bool prepare_folding(void)
{
    return false;
}

#endif

static uint32_t (*chosen)(uint32_t state, const uint8_t *bytes, size_t length);

int crc32c_prepare(void)
{
    if (!has_instruction())
        return 0;
    powers[0] = ONE >> 1; /* x */
    for (int i = 1; i < 64; i++)
        powers[i] = times(powers[i - 1], powers[i - 1]);
    prepare_streams();
    int ways = prepare_folding() ? 2 : 1;
    crc32c_use(ways);
    return ways;
}

void crc32c_use(int way)
{
    chosen = way == 2 ? by_folding : by_streams;
}

uint32_t crc32c(uint32_t crc, const void *bytes, size_t length)
{
    return ~chosen(~crc, bytes, length);
}
