/* What Python sees: arguments are checked here, under the GIL, and copied; then it is let go.
 *
 * Only the limited API is used, so that one build serves every CPython from 3.11 on.
 */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "crc32c.h"
#include "pieces.h"

#include <string.h>

#define GIL_BYTES (64 << 10) /* below this much, letting the GIL go costs more than it gives */

static int ways; /* of computing CRCs, that this CPU has */

static PyObject *argument_count(const char *wanted, Py_ssize_t count)
{
    PyErr_Format(PyExc_TypeError, "%s, not %zd", wanted, count);
    return NULL;
}

/* crc32c(buffer, crc=0) */
static PyObject *py_crc32c(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count < 1 || count > 2)
        return argument_count("crc32c takes 1 or 2 arguments", count);
    unsigned long crc = count == 2 ? PyLong_AsUnsignedLong(args[1]) : 0;
    if (crc == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    if (crc > UINT32_MAX)
        return PyErr_Format(PyExc_OverflowError, "a crc of %lu: 32 bits are allowed", crc);
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t result;
    if (buffer.len < GIL_BYTES) {
        result = crc32c((uint32_t)crc, buffer.buf, (size_t)buffer.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = crc32c((uint32_t)crc, buffer.buf, (size_t)buffer.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(result);
}

static void crc_blocks(const Py_buffer *buffer, size_t block_bytes, uint32_t *crcs)
{
    const uint8_t *bytes = buffer->buf;
    for (size_t left = (size_t)buffer->len; left;) {
        size_t step = left < block_bytes ? left : block_bytes;
        *crcs++ = crc32c(0, bytes, step);
        bytes += step;
        left -= step;
    }
}

/* block_crcs(buffer, block_bytes) */
static PyObject *py_block_crcs(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2)
        return argument_count("block_crcs takes 2 arguments", count);
    Py_ssize_t block_bytes = PyLong_AsSsize_t(args[1]);
    if (block_bytes == -1 && PyErr_Occurred())
        return NULL;
    if (block_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "blocks of %zd bytes: 1 or more are allowed",
                            block_bytes);
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t blocks = buffer.len / block_bytes + (buffer.len % block_bytes > 0);
    PyObject *result = NULL;
    if (blocks > PY_SSIZE_T_MAX / 4)
        PyErr_NoMemory();
    else
        result = PyBytes_FromStringAndSize(NULL, blocks * 4);
    if (result) {
        uint32_t *crcs = (uint32_t *)(void *)PyBytes_AsString(result);
        if (buffer.len < GIL_BYTES) {
            crc_blocks(&buffer, (size_t)block_bytes, crcs);
        } else {
            Py_BEGIN_ALLOW_THREADS
            crc_blocks(&buffer, (size_t)block_bytes, crcs);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&buffer);
    return result;
}

/* One element of the argument `pieces`; plain.PIECE is the same. */
struct record {
    int32_t descriptor;
    uint32_t crc;
    uint64_t position;
    uint32_t before, length, after, more_parts;
};

/* All that a call of read_pieces holds. */
struct call {
    Py_buffer records, crcs;
    Py_buffer *targets;
    Py_ssize_t targets_held;
    struct iovec *parts; /* the same as `targets` */
    struct piece *pieces;
    Py_ssize_t count;
};

/* Take the next buffer over; returns its length, or -1. */
static Py_ssize_t take_buffer(struct call *call, PyObject *buffers)
{
    Py_ssize_t at = call->targets_held;
    PyObject *buffer = PySequence_GetItem(buffers, at);
    if (!buffer)
        return -1;
    Py_buffer *target = &call->targets[at];
    int failed = PyObject_GetBuffer(buffer, target, PyBUF_WRITABLE);
    Py_DECREF(buffer);
    if (failed)
        return -1;
    call->targets_held++;
    call->parts[at] = (struct iovec){target->buf, (size_t)target->len};
    return target->len;
}

/* Take one piece over, if it is one that can be read. */
static bool take_piece(struct call *call, Py_ssize_t at, PyObject *buffers)
{
    struct record record;
    memcpy(&record, (const char *)call->records.buf + at * (Py_ssize_t)sizeof record, sizeof record);
    Py_ssize_t first = call->targets_held, length = 0;
    for (uint64_t left = (uint64_t)record.more_parts + 1; left; left--) {
        Py_ssize_t taken = take_buffer(call, buffers);
        if (taken < 0)
            return false;
        length += taken;
    }
    uint64_t total = (uint64_t)record.before + record.length + record.after;
    if (length != (Py_ssize_t)record.length)
        PyErr_Format(PyExc_ValueError, "piece %zd has %u bytes, its buffer %zd", at, record.length,
                     length);
    else if (record.before > EDGE_BYTES_MAX || record.after > EDGE_BYTES_MAX)
        PyErr_Format(PyExc_ValueError, "piece %zd has edges of %u and %u bytes: %u are allowed", at,
                     record.before, record.after, EDGE_BYTES_MAX);
    else if (record.position > INT64_MAX - total)
        PyErr_Format(PyExc_ValueError, "piece %zd ends behind what a file can hold", at);
    else if (record.descriptor == IN_MEMORY && total != record.length)
        PyErr_Format(PyExc_ValueError, "piece %zd is in memory and has edges", at);
    if (PyErr_Occurred())
        return false;
    call->pieces[at] = (struct piece){
        .descriptor = record.descriptor,
        .expected = record.crc,
        .before = record.before,
        .length = record.length,
        .after = record.after,
        .position = record.position,
        .parts = &call->parts[first],
        .part_count = (size_t)(call->targets_held - first),
    };
    return true;
}

/* How many buffers the pieces have together. */
static uint64_t parts_wanted(const struct call *call)
{
    uint64_t parts = (uint64_t)call->count;
    for (Py_ssize_t at = 0; at < call->count; at++) {
        struct record record;
        memcpy(&record, (const char *)call->records.buf + at * (Py_ssize_t)sizeof record,
               sizeof record);
        parts += record.more_parts;
    }
    return parts;
}

static bool take_arguments(struct call *call, PyObject *const *args, Py_ssize_t count)
{
    const Py_ssize_t record_bytes = sizeof(struct record);
    if (PyObject_GetBuffer(args[0], &call->records, PyBUF_SIMPLE) < 0)
        return false;
    if (count > 3 && args[3] != Py_None && PyObject_GetBuffer(args[3], &call->crcs, PyBUF_WRITABLE) < 0)
        return false;
    call->count = call->records.len / record_bytes;
    Py_ssize_t buffers = PySequence_Size(args[1]);
    if (buffers < 0)
        return false;
    if (call->records.len % record_bytes || (uint64_t)buffers != parts_wanted(call)) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of pieces, %zd each, for %zd buffers",
                     call->records.len, record_bytes, buffers);
        return false;
    }
    if (call->crcs.obj && call->crcs.len / 4 < call->count) {
        PyErr_Format(PyExc_ValueError, "%zd bytes for the checksums of %zd pieces", call->crcs.len,
                     call->count);
        return false;
    }
    call->targets = PyMem_Calloc((size_t)buffers + 1, sizeof *call->targets);
    call->parts = PyMem_Calloc((size_t)buffers + 1, sizeof *call->parts);
    call->pieces = PyMem_Calloc((size_t)call->count + 1, sizeof *call->pieces);
    if (!call->targets || !call->parts || !call->pieces) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t at = 0; at < call->count; at++)
        if (!take_piece(call, at, args[1]))
            return false;
    return true;
}

static void release(struct call *call)
{
    for (Py_ssize_t at = 0; at < call->targets_held; at++)
        PyBuffer_Release(&call->targets[at]);
    PyMem_Free(call->targets);
    PyMem_Free(call->parts);
    PyMem_Free(call->pieces);
    PyBuffer_Release(&call->records); /* does nothing if it is not held */
    PyBuffer_Release(&call->crcs);
}

/* The list of what is not good. */
static PyObject *failures_of(const struct call *call)
{
    PyObject *failures = PyList_New(0);
    for (Py_ssize_t at = 0; failures && at < call->count; at++) {
        const struct piece *piece = &call->pieces[at];
        if (!piece->error && !piece->missing && piece->found == piece->expected)
            continue;
        PyObject *failure =
            Py_BuildValue("niKI", at, piece->error, (unsigned long long)piece->missing,
                          piece->error || piece->missing ? 0 : piece->found);
        if (!failure || PyList_Append(failures, failure) < 0)
            Py_CLEAR(failures);
        Py_XDECREF(failure);
    }
    return failures;
}

/* read_pieces(pieces, buffers, split=False, crcs=None) */
static PyObject *py_read_pieces(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count < 2 || count > 4)
        return argument_count("read_pieces takes 2 to 4 arguments", count);
    int split = count > 2 ? PyObject_IsTrue(args[2]) : 0;
    if (split < 0)
        return NULL;
    struct call call;
    memset(&call, 0, sizeof call);
    PyObject *result = NULL;
    if (take_arguments(&call, args, count)) {
        bool has_memory;
        Py_BEGIN_ALLOW_THREADS
        has_memory = read_pieces(call.pieces, (size_t)call.count, split, call.crcs.obj != NULL);
        Py_END_ALLOW_THREADS
        result = has_memory ? failures_of(&call) : PyErr_NoMemory();
    }
    if (result && call.crcs.obj)
        for (Py_ssize_t at = 0; at < call.count; at++)
            memcpy((char *)call.crcs.buf + at * 4, &call.pieces[at].wanted_crc, 4);
    release(&call);
    return result;
}

/* Its length, -1 if it is not a writable memoryview of bytes in one row. */
static Py_ssize_t plain_length(PyObject *object)
{
    if (!PyMemoryView_Check(object))
        return -1;
    Py_buffer buffer;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_ND) < 0) {
        PyErr_Clear(); /* read-only, with gaps, or released: whoever uses it says so */
        return -1;
    }
    bool is_plain = buffer.ndim == 1 && buffer.format && !strcmp(buffer.format, "B");
    Py_ssize_t length = is_plain ? buffer.len : -1;
    PyBuffer_Release(&buffer);
    return length;
}

/* plain_lengths(buffers) */
static PyObject *py_plain_lengths(PyObject *module, PyObject *buffers)
{
    (void)module;
    if (!PyTuple_Check(buffers)) {
        PyErr_SetString(PyExc_TypeError, "plain_lengths takes a tuple");
        return NULL;
    }
    Py_ssize_t count = PyTuple_Size(buffers);
    PyObject *result = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(int64_t));
    if (!result)
        return NULL;
    char *lengths = PyBytes_AsString(result);
    for (Py_ssize_t at = 0; at < count; at++) {
        int64_t length = plain_length(PyTuple_GetItem(buffers, at));
        if (length < 0) {
            Py_DECREF(result);
            Py_RETURN_NONE;
        }
        memcpy(lengths + at * (Py_ssize_t)sizeof length, &length, sizeof length);
    }
    return result;
}

/* use_way(way) */
static PyObject *py_use_way(PyObject *module, PyObject *argument)
{
    (void)module;
    long way = PyLong_AsLong(argument);
    if (way == -1 && PyErr_Occurred())
        return NULL;
    if (way < 1 || way > ways)
        return PyErr_Format(PyExc_ValueError, "way %ld: 1 to %d are there", way, ways);
    crc32c_use((int)way);
    Py_RETURN_NONE;
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef methods[] = {
    {"crc32c", FAST(py_crc32c), METH_FASTCALL, "See fs3.compiled.plain.crc32c."},
    {"block_crcs", FAST(py_block_crcs), METH_FASTCALL, "See fs3.compiled.plain.block_crcs."},
    {"read_pieces", FAST(py_read_pieces), METH_FASTCALL, "See fs3.compiled.plain.read_pieces."},
    {"plain_lengths", py_plain_lengths, METH_O, "See fs3.compiled.plain.plain_lengths."},
    {"use_way", py_use_way, METH_O, "Compute CRCs in this way, 1 to WAYS: for tests."},
    {NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module)
{
    ways = crc32c_prepare();
    if (!ways) {
        PyErr_SetString(PyExc_ImportError, "this CPU has no instruction for CRC32C");
        return -1;
    }
    static bool once;
    if (!once)
        prepare_helper();
    once = true;
    return PyModule_AddIntConstant(module, "WAYS", ways);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_loops", .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__loops(void);

PyMODINIT_FUNC PyInit__loops(void)
{
    return PyModuleDef_Init(&definition);
}
