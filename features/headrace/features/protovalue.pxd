# C types for the compiled twin of protovalue.py; the Python file stays the only source of behaviour.
cimport cython

cdef unsigned char _BYTES, _STRING, _INT32, _INT64, _FLOAT64, _FLOAT32, _BOOL, _UNIX_TIMESTAMP, _LISTS
cdef unsigned long long _TOP, _ALL
cdef tuple _ONE_BYTE

@cython.locals(out=list, place=Py_ssize_t, kind=cython.uchar, text=bytes)
cpdef list encode_row(bytes kinds, object values, object encoders)
@cython.locals(values=list, place=Py_ssize_t, kind=cython.uchar, data=bytes, size=Py_ssize_t, number=cython.ulonglong, shift=cython.int, pos=Py_ssize_t, byte=cython.ulonglong)
cpdef list decode_row(bytes kinds, object row, Py_ssize_t start)
cdef str _text(bytes data, Py_ssize_t pos, Py_ssize_t place)
cpdef bytes varint(unsigned long long number)
@cython.locals(below=cython.longlong)
cdef object _signed(unsigned long long number)
