/* Reading pieces of files into memory and comparing them with their checksums.
 *
 * A large piece is cut into slices, each of which is checked as soon as it has been read, while it
 * is in the core's cache; the CRC of the piece is then combined from theirs. Threads take slices
 * one after the other until none is left.
 *
 * There is at most one thread beside those of the caller: the helper. It is made when it is first
 * needed, works for one caller at a time (others do without) and touches nothing of Python. A
 * caller whose work was not taken up by the helper takes it back: on a busy machine nobody waits
 * for a thread that does not get to run. It is kept off its caller's CPU, where it could only run
 * when the work is done; see place_helper(). After fork() the child has no helper, and makes its
 * own.
 */

#define _GNU_SOURCE

#include "pieces.h"
#include "crc32c.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLICE_BYTES (128u << 10)
#define WITHIN_BYTES (32u << 10) /* so little is read with its edges, and copied from between them */
#define PARTS_AT_ONCE 16
#define PATIENCE_NS 20000         /* so long, a few slices, another thread is waited for awake */
#define SPLIT_BYTES (512u << 10) /* below this much, waking another thread costs more than it saves */

/* What one thread reads and checks at a time: some bytes of a piece, its edges included. */
struct slice {
    struct piece *piece;
    uint64_t start, end;
    const struct iovec *part; /* where its first wanted byte goes, */
    size_t skip;              /* so many bytes into it */
    int error;
    uint64_t missing;
    uint32_t found, wanted_crc;
};

struct job {
    struct slice *slices;
    size_t count;
    size_t next; /* slice that nobody has taken; atomic */
    bool wants_crcs;
};

static __thread uint8_t scratch[2 * EDGE_BYTES_MAX]; /* edges, and small pieces that have them */

static bool is_scratch(const uint8_t *bytes)
{
    return bytes >= scratch && bytes < scratch + sizeof scratch;
}

/* Fill the `parts`; 0 or errno, and how many bytes are missing because the file ends. */
static int read_fully(int descriptor, uint64_t position, struct iovec *parts, int count,
                      uint64_t *missing)
{
    uint64_t left = 0;
    for (int i = 0; i < count; i++)
        left += parts[i].iov_len;
    while (left) {
        ssize_t got = count == 1
                          ? pread(descriptor, parts->iov_base, parts->iov_len, (off_t)position)
                          : preadv(descriptor, parts, count, (off_t)position);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            break;
        position += (uint64_t)got;
        left -= (uint64_t)got;
        for (size_t rest = (size_t)got; left && rest;) {
            size_t step = rest < parts->iov_len ? rest : parts->iov_len;
            parts->iov_base = (uint8_t *)parts->iov_base + step;
            parts->iov_len -= step;
            rest -= step;
            if (!parts->iov_len) {
                parts++;
                count--;
            }
        }
    }
    *missing = left;
    return 0;
}

static uint64_t total_of(const struct piece *piece)
{
    return (uint64_t)piece->before + piece->length + piece->after;
}

static bool is_small_with_edges(const struct piece *piece)
{
    uint64_t total = total_of(piece);
    return total != piece->length && total <= WITHIN_BYTES;
}

static bool same_block(const struct piece *a, const struct piece *b)
{
    return a->descriptor == b->descriptor && a->position == b->position &&
           a->expected == b->expected && total_of(a) == total_of(b);
}

/* Such a piece. `held` is whose block the scratch holds, verified, or NULL: pieces of one checksum
 * block that follow each other are read and checked once. Returns whose it holds now. */
static const struct piece *read_within(struct slice *slice, const struct piece *held,
                                       bool wants_crcs)
{
    const struct piece *piece = slice->piece;
    uint64_t total = total_of(piece);
    if (held && same_block(held, piece)) {
        slice->found = piece->expected;
    } else {
        struct iovec part = {scratch, total};
        slice->error = read_fully(piece->descriptor, piece->position, &part, 1, &slice->missing);
        if (slice->error || slice->missing)
            return NULL;
        slice->found = crc32c(0, scratch, total);
        if (slice->found != piece->expected)
            return NULL;
    }
    const uint8_t *from = scratch + piece->before;
    for (size_t i = 0; i < piece->part_count; from += piece->parts[i++].iov_len)
        memcpy(piece->parts[i].iov_base, from, piece->parts[i].iov_len);
    if (wants_crcs)
        slice->wanted_crc = crc32c(0, scratch + piece->before, piece->length);
    return piece;
}

static uint64_t within(uint64_t at, uint64_t low, uint64_t high)
{
    return at < low ? low : at > high ? high : at;
}

/* Where a slice goes: its part of the edges to the scratch, all else where it belongs. */
struct walk {
    uint64_t at, from, to, end; /* from..to is wanted */
    const struct iovec *part;
    size_t skip; /* so many bytes into it */
};

/* The next parts, as many as there is room for; returns their number. */
static int next_parts(struct walk *walk, struct iovec parts[PARTS_AT_ONCE])
{
    int count = 0;
    if (walk->at < walk->from) {
        parts[count++] = (struct iovec){scratch, walk->from - walk->at};
        walk->at = walk->from;
    }
    while (walk->at < walk->to && count < PARTS_AT_ONCE - 1) {
        uint64_t left = walk->to - walk->at;
        size_t room = walk->part->iov_len - walk->skip, length = room < left ? room : left;
        parts[count++] = (struct iovec){(uint8_t *)walk->part->iov_base + walk->skip, length};
        walk->at += length;
        walk->skip += length;
        if (length == room) {
            walk->part++;
            walk->skip = 0;
        }
    }
    if (walk->at == walk->to && walk->to < walk->end) {
        parts[count++] = (struct iovec){scratch + EDGE_BYTES_MAX, walk->end - walk->to};
        walk->at = walk->end;
    }
    return count;
}

/* Any slice: parts are checked as soon as they are read, while they are in the cache. */
static void read_slice(struct slice *slice, bool wants_crcs)
{
    const struct piece *piece = slice->piece;
    uint64_t start = slice->start, end = slice->end;
    uint64_t middle = piece->before, behind = middle + piece->length;
    struct walk walk = {start,       within(middle, start, end), within(behind, start, end), end,
                        slice->part, slice->skip};
    bool has_edges = walk.to - walk.from != end - start;
    while (walk.at < end) {
        struct iovec parts[PARTS_AT_ONCE], left[PARTS_AT_ONCE];
        uint64_t position = piece->position + walk.at;
        int count = next_parts(&walk, parts);
        memcpy(left, parts, sizeof parts[0] * (size_t)count);
        if (piece->descriptor != IN_MEMORY)
            slice->error =
                read_fully(piece->descriptor, position, left, count, &slice->missing);
        if (slice->error)
            return;
        if (slice->missing) {
            slice->missing += end - walk.at;
            return;
        }
        for (int i = 0; i < count; i++) {
            const uint8_t *bytes = parts[i].iov_base;
            slice->found = crc32c(slice->found, bytes, parts[i].iov_len);
            if (wants_crcs && has_edges && !is_scratch(bytes))
                slice->wanted_crc = crc32c(slice->wanted_crc, bytes, parts[i].iov_len);
        }
    }
    if (!has_edges)
        slice->wanted_crc = slice->found;
}

static void work(struct job *job)
{
    const struct piece *held = NULL;
    for (;;) {
        size_t at = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (at >= job->count)
            return;
        struct slice *slice = &job->slices[at];
        if (is_small_with_edges(slice->piece)) {
            held = read_within(slice, held, job->wants_crcs);
        } else {
            held = NULL;
            read_slice(slice, job->wants_crcs);
        }
    }
}

/* -- the helper ---------------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static pthread_cond_t offer = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static bool started;
static pthread_t helper;
static cpu_set_t helpers_cpus; /* where it may run, as far as we have said so */
static struct job *offered, *helped; /* at most one of them is set */

static void *help(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!offered)
            pthread_cond_wait(&offer, &lock);
        __atomic_store_n(&helped, offered, __ATOMIC_RELEASE);
        offered = NULL;
        pthread_mutex_unlock(&lock);
        work(helped);
        pthread_mutex_lock(&lock);
        __atomic_store_n(&helped, NULL, __ATOMIC_RELEASE);
        pthread_cond_signal(&done);
    }
    return NULL; /* never */
}

/* With the lock held. Signals stay with the threads that know what to do about them. */
static bool start_helper(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    started = pthread_create(&helper, NULL, help, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CPU_ZERO(&helpers_cpus);
    if (started)
        pthread_detach(helper);
    return started;
}

/* The CPUs of this thread; false if it has but one. */
static bool has_two_cpus(cpu_set_t *cpus)
{
    return sched_getaffinity(0, sizeof *cpus, cpus) == 0 && CPU_COUNT(cpus) > 1;
}

/* With the lock held: let the helper run on `cpus`. */
static void allow_helper(const cpu_set_t *cpus)
{
    if (!CPU_EQUAL(cpus, &helpers_cpus) && !pthread_setaffinity_np(helper, sizeof *cpus, cpus))
        helpers_cpus = *cpus;
}

/* With the lock held, before work is offered. When all CPUs have had much to do lately, Linux
 * (select_idle_cpu, SIS_UTIL) does not look for an idle one when it wakes a thread: a helper on its
 * caller's CPU would wait behind it, be woken there the next time, too, and never help. */
static void place_helper(const cpu_set_t *callers)
{
    cpu_set_t others = *callers;
    int here = sched_getcpu();
    if (here >= 0)
        CPU_CLR(here, &others);
    allow_helper(&others);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Mostly the helper is in the middle of its last slice: that is sooner over than a sleep. */
static void await_helper(const struct job *job)
{
    uint64_t until = now_ns() + PATIENCE_NS;
    while (__atomic_load_n(&helped, __ATOMIC_ACQUIRE) == job && now_ns() < until)
        ;
}

static void work_with_helper(struct job *job, const cpu_set_t *cpus)
{
    pthread_mutex_lock(&lock);
    bool free = !offered && !helped && (started || start_helper());
    if (free) {
        place_helper(cpus);
        offered = job;
        pthread_cond_signal(&offer);
    }
    pthread_mutex_unlock(&lock);
    work(job);
    if (!free)
        return;
    await_helper(job);
    pthread_mutex_lock(&lock);
    if (offered == job)
        offered = NULL;
    if (helped == job)
        allow_helper(cpus); /* if somebody else has the other CPU, it can go on on this one */
    while (helped == job)
        pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
}

static void forget_helper(void)
{
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&offer, NULL);
    pthread_cond_init(&done, NULL);
    started = false;
    offered = helped = NULL;
}

void prepare_helper(void)
{
    pthread_atfork(NULL, NULL, forget_helper);
}

/* -- all of it ----------------------------------------------------------------------------------- */

static size_t slices_of(const struct piece *piece)
{
    uint64_t total = total_of(piece);
    return total ? (size_t)((total + SLICE_BYTES - 1) / SLICE_BYTES) : 1;
}

/* Returns how many slices it made. */
static size_t cut_into_slices(struct piece *piece, struct slice *slices)
{
    uint64_t total = total_of(piece), middle = piece->before, passed = 0; /* wanted bytes, in parts */
    const struct iovec *part = piece->parts, *last = part + piece->part_count;
    size_t count = slices_of(piece);
    for (size_t i = 0; i < count; i++) {
        uint64_t start = i * (uint64_t)SLICE_BYTES;
        uint64_t end = total - start > SLICE_BYTES ? start + SLICE_BYTES : total;
        uint64_t wanted = within(start, middle, middle + piece->length) - middle;
        for (; part < last && passed + part->iov_len <= wanted; part++)
            passed += part->iov_len;
        slices[i].piece = piece;
        slices[i].start = start;
        slices[i].end = end;
        slices[i].part = part;
        slices[i].skip = wanted - passed;
    }
    return count;
}

/* Put the results of a piece's slices together; returns the first slice of the next piece. */
static const struct slice *settle(struct piece *piece, const struct slice *slice)
{
    uint64_t middle = piece->before, behind = middle + piece->length;
    piece->error = 0;
    piece->missing = 0;
    piece->found = piece->wanted_crc = 0;
    for (size_t left = slices_of(piece); left; left--, slice++) {
        if (!piece->error)
            piece->error = slice->error;
        piece->missing += slice->missing;
        piece->found = crc32c_combine(piece->found, slice->found, slice->end - slice->start);
        uint64_t wanted = within(behind, slice->start, slice->end) -
                          within(middle, slice->start, slice->end);
        piece->wanted_crc = crc32c_combine(piece->wanted_crc, slice->wanted_crc, wanted);
    }
    return slice;
}

bool read_pieces(struct piece *pieces, size_t count, bool split, bool wants_crcs)
{
    size_t slices = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        slices += slices_of(&pieces[i]);
        bytes += total_of(&pieces[i]);
    }
    struct job job = {calloc(slices + 1, sizeof *job.slices), 0, 0, wants_crcs};
    if (!job.slices)
        return false;
    for (size_t i = 0; i < count; i++)
        job.count += cut_into_slices(&pieces[i], job.slices + job.count);
    cpu_set_t cpus;
    if (split && job.count > 1 && bytes >= SPLIT_BYTES && has_two_cpus(&cpus))
        work_with_helper(&job, &cpus);
    else
        work(&job);
    const struct slice *slice = job.slices;
    for (size_t i = 0; i < count; i++)
        slice = settle(&pieces[i], slice);
    free(job.slices);
    return true;
}
