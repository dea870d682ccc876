/* QUIC's ordinary packets in C: 1-RTT packets of STREAM, DATAGRAM and ACK frames (RFC 9000, RFC 9001).
 *
 * Optional: packets.py has the same functions in Python. Only bytes are taken apart and put together here; keys are the
 * caller's, as callables, and so is all state. What is out of the ordinary gets None, and goes another way.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define NONCE 12
#define SAMPLE 16
/* The sample of header protection begins four bytes after the packet number does (RFC 9001 section 5.4.2). */
#define SAMPLE_AT 4
#define MASK 5
#define NUMBER 2 /* bytes of a packet number that is sent */
#define PROTECTED 0x1f /* bits of the first byte of a short header */
#define MAX_CID 20
#define MIN_PAYLOAD (SAMPLE_AT - NUMBER)
#define MAX_PAYLOAD 65535
#define MAX_VARINT ((UINT64_C(1) << 62) - 1)

enum { PADDING = 0x00, PING = 0x01, ACK = 0x02, STREAM = 0x08, STREAM_LAST = 0x0f, DATAGRAM = 0x30, DATAGRAM_LENGTH = 0x31 };
enum { FIN = 0x01, LENGTH = 0x02, OFFSET = 0x04 };

/* ---- integers */

static int
is_nonnegative(PyObject *number, uint64_t *value, uint64_t limit, const char *name)
{
    unsigned long long found = PyLong_AsUnsignedLongLong(number);
    if (found == (unsigned long long)-1 && PyErr_Occurred()) {
        return 0;
    }
    if (found > limit) {
        PyErr_Format(PyExc_ValueError, "%s is out of range", name);
        return 0;
    }
    *value = found;
    return 1;
}

/* A variable-length integer (RFC 9000 section 16); 0 if it is cut short. */
static int
pull(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    Py_ssize_t size, i;

    if (*at >= end) {
        return 0;
    }
    size = (Py_ssize_t)1 << (**at >> 6);
    if (end - *at < size) {
        return 0;
    }
    *value = **at & 0x3f;
    for (i = 1; i < size; i++) {
        *value = *value << 8 | (*at)[i];
    }
    *at += size;
    return 1;
}

static Py_ssize_t
varint_size(uint64_t value)
{
    return value < 1 << 6 ? 1 : value < 1 << 14 ? 2 : value < 1 << 30 ? 4 : 8;
}

static uint8_t *
push(uint8_t *at, uint64_t value)
{
    Py_ssize_t size = varint_size(value), i;

    for (i = size - 1; i >= 0; i--) {
        at[i] = (uint8_t)value;
        value >>= 8;
    }
    at[0] |= (uint8_t)(size == 1 ? 0x00 : size == 2 ? 0x40 : size == 4 ? 0x80 : 0xc0);
    return at + size;
}

/* ---- protection */

/* The AEAD's nonce (RFC 9001 section 5.3), as a new reference. */
static PyObject *
make_nonce(PyObject *iv, uint64_t number)
{
    PyObject *nonce;
    uint8_t *bytes;
    int i;

    if (!PyBytes_Check(iv) || PyBytes_GET_SIZE(iv) != NONCE) {
        PyErr_SetString(PyExc_ValueError, "an iv has 12 bytes");
        return NULL;
    }
    nonce = PyBytes_FromStringAndSize(PyBytes_AS_STRING(iv), NONCE);
    if (nonce != NULL) {
        bytes = (uint8_t *)PyBytes_AS_STRING(nonce);
        for (i = 0; i < 8; i++) {
            bytes[NONCE - 1 - i] ^= (uint8_t)(number >> 8 * i);
        }
    }
    return nonce;
}

/* The mask of header protection (RFC 9001 section 5.4.1) for 16 bytes that are there. */
static int
make_mask(PyObject *mask, const uint8_t *sample, uint8_t *bits)
{
    PyObject *piece, *found;
    int ok = 0;

    piece = PyBytes_FromStringAndSize((const char *)sample, SAMPLE);
    if (piece == NULL) {
        return 0;
    }
    found = PyObject_CallOneArg(mask, piece);
    Py_DECREF(piece);
    if (found == NULL) {
        return 0;
    }
    if (PyBytes_Check(found) && PyBytes_GET_SIZE(found) >= MASK) {
        memcpy(bits, PyBytes_AS_STRING(found), MASK);
        ok = 1;
    }
    else {
        PyErr_SetString(PyExc_ValueError, "a mask has 5 bytes or more");
    }
    Py_DECREF(found);
    return ok;
}

/* Call the AEAD; takes over the references to what it gets, of which any may be NULL with an exception set. */
static PyObject *
call_aead(PyObject *aead, PyObject *nonce, PyObject *data, PyObject *header)
{
    PyObject *args[4] = {NULL, nonce, data, header}, *result = NULL;

    if (nonce != NULL && data != NULL && header != NULL) {
        result = PyObject_Vectorcall(aead, args + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(nonce);
    Py_XDECREF(data);
    Py_XDECREF(header);
    if (result != NULL && !PyBytes_Check(result)) {
        PyErr_SetString(PyExc_TypeError, "an AEAD returns bytes");
        Py_CLEAR(result);
    }
    return result;
}

PyDoc_STRVAR(open_packet_doc,
"open_packet(data, cid_length, key_phase, expected, mask, decrypt, iv) -> (first, number, payload) or None\n\n"
"Open a packet with a short header; None if it is too short, or of another key phase.");

static PyObject *
open_packet(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    const uint8_t *data;
    uint8_t bits[MASK], first, *header;
    uint64_t cid_length, phase, expected, number = 0, window, truncated = 0;
    Py_ssize_t size, start, length, i;
    PyObject *header_object, *payload;

    if (count != 7 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "open_packet takes bytes, and six things more");
        return NULL;
    }
    if (!is_nonnegative(args[1], &cid_length, MAX_CID, "cid_length")
        || !is_nonnegative(args[2], &phase, 1, "key_phase")
        || !is_nonnegative(args[3], &expected, MAX_VARINT + 1, "expected")) {
        return NULL;
    }
    data = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    size = PyBytes_GET_SIZE(args[0]);
    start = 1 + (Py_ssize_t)cid_length;
    if (size < start + SAMPLE_AT + SAMPLE) {
        Py_RETURN_NONE;
    }
    if (!make_mask(args[4], data + start + SAMPLE_AT, bits)) {
        return NULL;
    }
    first = data[0] ^ (bits[0] & PROTECTED);
    if ((first >> 2 & 1) != phase) {
        Py_RETURN_NONE;
    }
    length = (first & 3) + 1;
    header_object = PyBytes_FromStringAndSize((const char *)data, start + length);
    if (header_object == NULL) {
        return NULL;
    }
    header = (uint8_t *)PyBytes_AS_STRING(header_object);
    header[0] = first;
    for (i = 0; i < length; i++) {
        header[start + i] ^= bits[1 + i];
        truncated = truncated << 8 | header[start + i];
    }
    /* RFC 9000 appendix A.3; no sum is above 2^63, and no difference below 0. */
    window = UINT64_C(1) << 8 * length;
    number = (expected & ~(window - 1)) | truncated;
    if (number + window / 2 <= expected && number < MAX_VARINT + 1 - window) {
        number += window;
    }
    else if (number > expected + window / 2 && number >= window) {
        number -= window;
    }
    payload = call_aead(
        args[5],
        make_nonce(args[6], number),
        PyBytes_FromStringAndSize((const char *)data + start + length, size - start - length),
        header_object);
    if (payload == NULL) {
        return NULL;
    }
    return Py_BuildValue("iKN", (int)first, (unsigned long long)number, payload);
}

/* ---- frames */

/* A STREAM frame (RFC 9000 section 19.8), given as (stream_id, offset, fin, buffer, start, stop), its length in two bytes.
 * Returns how long it is, and writes it if there is a place for it; -1 with an exception. */
static Py_ssize_t
write_stream(PyObject *frame, uint8_t *at, const uint8_t *end)
{
    uint64_t stream_id, offset, start, stop;
    Py_ssize_t size;
    Py_buffer view;
    int fin = PyObject_IsTrue(PyTuple_GET_ITEM(frame, 2));

    if (fin < 0
        || !is_nonnegative(PyTuple_GET_ITEM(frame, 0), &stream_id, MAX_VARINT, "stream_id")
        || !is_nonnegative(PyTuple_GET_ITEM(frame, 1), &offset, MAX_VARINT, "offset")
        || !is_nonnegative(PyTuple_GET_ITEM(frame, 4), &start, PY_SSIZE_T_MAX, "start")
        || !is_nonnegative(PyTuple_GET_ITEM(frame, 5), &stop, PY_SSIZE_T_MAX, "stop")
        || PyObject_GetBuffer(PyTuple_GET_ITEM(frame, 3), &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    size = 1 + varint_size(stream_id) + (offset ? varint_size(offset) : 0) + 2;
    if (start > stop || stop > (uint64_t)view.len || stop - start > 0x3fff) {
        PyErr_SetString(PyExc_ValueError, "the data of a STREAM frame is out of range");
        size = -1;
    }
    else {
        size += (Py_ssize_t)(stop - start);
        if (at != NULL && size <= end - at) {
            *at++ = (uint8_t)(STREAM | LENGTH | (offset ? OFFSET : 0) | (fin ? FIN : 0));
            at = push(at, stream_id);
            if (offset) {
                at = push(at, offset);
            }
            *at++ = (uint8_t)(0x40 | (stop - start) >> 8);
            *at++ = (uint8_t)(stop - start);
            memcpy(at, (const uint8_t *)view.buf + start, (size_t)(stop - start));
        }
    }
    PyBuffer_Release(&view);
    return size;
}

/* Any frame of a packet to be sealed, in the same way. */
static Py_ssize_t
write_frame(PyObject *frame, uint8_t *at, const uint8_t *end)
{
    PyObject *data = frame;
    Py_ssize_t size;
    int is_datagram = PyTuple_Check(frame) && PyTuple_GET_SIZE(frame) == 1;

    if (PyTuple_Check(frame) && PyTuple_GET_SIZE(frame) == 6) {
        return write_stream(frame, at, end);
    }
    if (is_datagram) {
        data = PyTuple_GET_ITEM(frame, 0);
    }
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "a frame is bytes, a tuple of one or a tuple of six");
        return -1;
    }
    size = PyBytes_GET_SIZE(data);
    if (is_datagram) { /* RFC 9221 section 4 */
        size += 1 + varint_size((uint64_t)PyBytes_GET_SIZE(data));
    }
    if (at != NULL && size <= end - at) {
        if (is_datagram) {
            *at++ = DATAGRAM_LENGTH;
            at = push(at, (uint64_t)PyBytes_GET_SIZE(data));
        }
        memcpy(at, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
    }
    return size;
}

/* All frames of a packet, one after the other. */
static PyObject *
write_frames(PyObject *frames)
{
    PyObject *payload;
    uint8_t *at, *end;
    Py_ssize_t size, total = 0, i;

    for (i = 0; i < PyTuple_GET_SIZE(frames); i++) {
        size = write_frame(PyTuple_GET_ITEM(frames, i), NULL, NULL);
        if (size < 0) {
            return NULL;
        }
        if (size > MAX_PAYLOAD - total) {
            PyErr_SetString(PyExc_ValueError, "the frames are too large for a packet");
            return NULL;
        }
        total += size;
    }
    /* Enough for a sample (RFC 9001 section 5.4.2); PADDING frames are zeros. */
    payload = PyBytes_FromStringAndSize(NULL, total < MIN_PAYLOAD ? MIN_PAYLOAD : total);
    if (payload == NULL) {
        return NULL;
    }
    at = (uint8_t *)PyBytes_AS_STRING(payload);
    memset(at, 0, MIN_PAYLOAD);
    end = at + PyBytes_GET_SIZE(payload);
    for (i = 0; i < PyTuple_GET_SIZE(frames); i++) {
        size = write_frame(PyTuple_GET_ITEM(frames, i), at, end);
        if (size < 0 || size > end - at) {
            Py_DECREF(payload);
            if (size >= 0) {
                PyErr_SetString(PyExc_RuntimeError, "a frame has grown");
            }
            return NULL;
        }
        at += size;
    }
    return payload;
}

PyDoc_STRVAR(seal_packet_doc,
"seal_packet(first, cid, number, frames, mask, encrypt, iv) -> bytes\n\n"
"A protected packet with a short header, as seal_packet_python makes it.");

static PyObject *
seal_packet(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    PyObject *frames, *sealed, *header, *packet = NULL;
    uint64_t first, number;
    uint8_t bits[MASK], *at;
    Py_ssize_t header_size, size, i;

    if (count != 7 || !PyBytes_Check(args[1]) || !PyTuple_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "seal_packet takes seven things, bytes second and a tuple fourth");
        return NULL;
    }
    if (!is_nonnegative(args[0], &first, 0xff, "first")
        || !is_nonnegative(args[2], &number, MAX_VARINT, "number")) {
        return NULL;
    }
    if (PyBytes_GET_SIZE(args[1]) > MAX_CID) {
        PyErr_SetString(PyExc_ValueError, "a connection id has 20 bytes at most");
        return NULL;
    }
    frames = write_frames(args[3]);
    if (frames == NULL) {
        return NULL;
    }
    header_size = 1 + PyBytes_GET_SIZE(args[1]) + NUMBER;
    header = PyBytes_FromStringAndSize(NULL, header_size);
    if (header == NULL) {
        Py_DECREF(frames);
        return NULL;
    }
    at = (uint8_t *)PyBytes_AS_STRING(header);
    at[0] = (uint8_t)first;
    memcpy(at + 1, PyBytes_AS_STRING(args[1]), (size_t)PyBytes_GET_SIZE(args[1]));
    at[header_size - 2] = (uint8_t)(number >> 8);
    at[header_size - 1] = (uint8_t)number;
    sealed = call_aead(args[5], make_nonce(args[6], number), frames, Py_NewRef(header));
    if (sealed == NULL) {
        Py_DECREF(header);
        return NULL;
    }
    size = PyBytes_GET_SIZE(sealed);
    if (size < SAMPLE_AT - NUMBER + SAMPLE) {
        PyErr_SetString(PyExc_ValueError, "an AEAD adds 16 bytes");
    }
    else if (make_mask(args[4], (uint8_t *)PyBytes_AS_STRING(sealed) + SAMPLE_AT - NUMBER, bits)) {
        packet = PyBytes_FromStringAndSize(NULL, header_size + size);
    }
    if (packet != NULL) {
        at = (uint8_t *)PyBytes_AS_STRING(packet);
        memcpy(at, PyBytes_AS_STRING(header), (size_t)header_size);
        memcpy(at + header_size, PyBytes_AS_STRING(sealed), (size_t)size);
        at[0] ^= bits[0] & PROTECTED;
        for (i = 0; i < NUMBER; i++) {
            at[header_size - NUMBER + i] ^= bits[1 + i];
        }
    }
    Py_DECREF(header);
    Py_DECREF(sealed);
    return packet;
}

/* The data of a frame that is `length` bytes long, or reaches to the end; NULL without an exception if it is cut short. */
static PyObject *
take(const uint8_t **at, const uint8_t *end, int has_length)
{
    uint64_t length = (uint64_t)(end - *at);
    const uint8_t *start;

    if (has_length && (!pull(at, end, &length) || length > (uint64_t)(end - *at))) {
        return NULL;
    }
    start = *at;
    *at += length;
    return PyBytes_FromStringAndSize((const char *)start, (Py_ssize_t)length);
}

/* A frame from its type on; NULL without an exception if it is none of those, or not whole. */
static PyObject *
read_frame(const uint8_t *base, const uint8_t **at, const uint8_t *end)
{
    uint8_t type = *(*at)++;
    Py_ssize_t body = *at - base;
    uint64_t one, two = 0, ranges, first;
    PyObject *data;

    if (type >= STREAM && type <= STREAM_LAST) {
        if (!pull(at, end, &one) || ((type & OFFSET) && !pull(at, end, &two))) {
            return NULL;
        }
        data = take(at, end, type & LENGTH);
        return data == NULL ? NULL : Py_BuildValue(
            "inKKN", (int)type, body, (unsigned long long)one, (unsigned long long)two, data);
    }
    if (type == ACK) { /* RFC 9000 section 19.3 */
        if (!pull(at, end, &one) || !pull(at, end, &two) || !pull(at, end, &ranges)
            || !pull(at, end, &first) || ranges != 0 || first > one) {
            return NULL;
        }
        return Py_BuildValue(
            "inKKK", (int)type, body, (unsigned long long)(one - first), (unsigned long long)one,
            (unsigned long long)two);
    }
    if (type == DATAGRAM || type == DATAGRAM_LENGTH) {
        data = take(at, end, type == DATAGRAM_LENGTH);
        return data == NULL ? NULL : Py_BuildValue("innN", (int)type, body, *at - base - body, data);
    }
    return NULL;
}

PyDoc_STRVAR(read_frames_doc,
"read_frames(payload) -> (frames, eliciting) or None\n\n"
"The frames of an ordinary packet, as read_frames_python finds them.");

static PyObject *
read_frames(PyObject *Py_UNUSED(module), PyObject *payload)
{
    const uint8_t *base, *at, *end;
    PyObject *frames, *frame;
    int eliciting = 0, failed = 0;

    if (!PyBytes_Check(payload)) {
        PyErr_SetString(PyExc_TypeError, "read_frames takes bytes");
        return NULL;
    }
    base = at = (const uint8_t *)PyBytes_AS_STRING(payload);
    end = at + PyBytes_GET_SIZE(payload);
    if (at == end) {
        Py_RETURN_NONE;
    }
    frames = PyList_New(0);
    if (frames == NULL) {
        return NULL;
    }
    while (at < end && !failed) {
        if (*at == PADDING || *at == PING) {
            eliciting |= *at++ == PING;
            continue;
        }
        eliciting |= *at != ACK;
        frame = read_frame(base, &at, end);
        failed = frame == NULL || PyList_Append(frames, frame) < 0;
        Py_XDECREF(frame);
    }
    if (!failed) {
        return Py_BuildValue("NN", frames, PyBool_FromLong(eliciting));
    }
    Py_DECREF(frames);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"open_packet", (PyCFunction)(void (*)(void))open_packet, METH_FASTCALL, open_packet_doc},
    {"read_frames", read_frames, METH_O, read_frames_doc},
    {"seal_packet", (PyCFunction)(void (*)(void))seal_packet, METH_FASTCALL, seal_packet_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_packets",
    .m_doc = "QUIC's ordinary packets in C.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__packets(void)
{
    return PyModuleDef_Init(&module);
}
