# C types for the compiled twin of mysqlvalue.py; the Python file stays the only source of behaviour.
cimport cython

cdef unsigned char _OTHER, _SIGNED, _UNSIGNED, _UTF8, _ASCII, _STAMP, _MOMENT, _DATE, _DECIMAL, _DOUBLE
cdef unsigned char _INSERT, _UPDATE, _DELETE
cdef unsigned long long _ZERO_MOMENT

@cython.final
cdef class RowReader:
    cdef public object table
    cdef list _columns
    cdef bytes _kinds
    cdef bytes _widths
    cdef list _metadata
    cdef Py_ssize_t _pos
    cdef bint _left_out
    cdef object _partial

    cpdef tuple read(self, bytes data, Py_ssize_t pos, bytes present)
    @cython.locals(end=Py_ssize_t, what=cython.uchar, image=tuple, after=tuple)
    cpdef read_all(self, bytes data, Py_ssize_t pos, str op, bytes first, bytes second, object mapped, list into, bint is_partial)
    cdef Py_ssize_t _differences(self, bytes data, Py_ssize_t pos) except -1
    @cython.locals(count=Py_ssize_t, end=Py_ssize_t, kinds=bytes, widths=bytes, columns=list, values=list, held=Py_ssize_t, index=Py_ssize_t, nulls=Py_ssize_t, place=Py_ssize_t, is_null=cython.int, kind=cython.uchar, size=Py_ssize_t, length=Py_ssize_t, step=Py_ssize_t, number=cython.ulonglong, mask=cython.ulonglong, below=cython.longlong, raw=bytes, start=Py_ssize_t, digits=Py_ssize_t, micros=cython.ulonglong, text=str)
    cdef tuple _row(self, bytes data, Py_ssize_t pos, bytes present)

@cython.locals(seconds=cython.ulonglong, step=Py_ssize_t)
cdef str _stamp(bytes data, Py_ssize_t pos)
@cython.locals(packed=cython.ulonglong, months=cython.ulonglong, day=cython.ulonglong, step=Py_ssize_t)
cdef str _moment(bytes data, Py_ssize_t pos)
@cython.locals(packed=cython.ulonglong)
cdef str _date(bytes data, Py_ssize_t pos)
@cython.locals(scale=Py_ssize_t, digits=Py_ssize_t, taken=Py_ssize_t, size=Py_ssize_t, step=Py_ssize_t, inverted=cython.uint, is_first=cython.uint, whole=cython.ulonglong, part=cython.ulonglong, word=cython.ulonglong, sign=str)
cdef str _decimal(bytes data, Py_ssize_t pos, Py_ssize_t metadata)
cdef unsigned long long _ten(Py_ssize_t digits) noexcept
cdef str _padded(unsigned long long number, Py_ssize_t digits)
