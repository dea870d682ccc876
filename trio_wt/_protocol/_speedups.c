/* XOR masking of WebSocket payloads (RFC 6455 section 5.3) in C.
 *
 * Optional: masking.py has the same function in Python, some forty times slower on large payloads.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

PyDoc_STRVAR(apply_mask_doc,
"apply_mask(data, key, start=0, stop=None, phase=0) -> bytes\n\n"
"data[start:stop] XORed with the 4-byte key, beginning at key[phase].");

static PyObject *
apply_mask(PyObject *module, PyObject *args)
{
    Py_buffer data, key;
    Py_ssize_t start = 0, stop = -1, phase = 0;
    PyObject *result = NULL;

    if (!PyArg_ParseTuple(args, "y*y*|nnn:apply_mask", &data, &key, &start, &stop, &phase)) {
        return NULL;
    }
    if (stop < 0) {
        stop = data.len;
    }
    if (key.len != 4 || start < 0 || start > stop || stop > data.len || phase < 0) {
        PyErr_SetString(PyExc_ValueError, "apply_mask: key is not 4 bytes long, or range outside data");
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, stop - start);
    if (result == NULL) {
        goto done;
    }
    {
        const uint8_t *in = (const uint8_t *)data.buf + start;
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
        const uint8_t *k = (const uint8_t *)key.buf;
        Py_ssize_t length = stop - start, i = 0;
        uint8_t wide[8];
        uint64_t mask, word;

        for (i = 0; i < 8; i++) {
            wide[i] = k[(phase + i) & 3];
        }
        memcpy(&mask, wide, 8);
        for (i = 0; i + 8 <= length; i += 8) { /* memcpy: unaligned access, vectorised at -O2 and up */
            memcpy(&word, in + i, 8);
            word ^= mask;
            memcpy(out + i, &word, 8);
        }
        for (; i < length; i++) {
            out[i] = in[i] ^ wide[i & 7];
        }
    }
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&key);
    return result;
}

static PyMethodDef methods[] = {
    {"apply_mask", apply_mask, METH_VARARGS, apply_mask_doc},
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
    .m_name = "_speedups",
    .m_doc = "XOR masking in C.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&module);
}
