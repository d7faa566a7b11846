# C types for the compiled twin of mysqlvalue.py; the Python file stays the only source of behaviour.
cimport cython

@cython.final
cdef class RowReader:
    cdef public object table
    cdef list _columns
    cdef bytes _kinds
    cdef list _sizes
    cdef Py_ssize_t _pos

    cpdef tuple read(self, bytes data, Py_ssize_t pos, bytes present)
    @cython.locals(count=Py_ssize_t, end=Py_ssize_t, kinds=bytes, sizes=list, columns=list, values=list, held=Py_ssize_t, index=Py_ssize_t, nulls=Py_ssize_t, place=Py_ssize_t, is_null=cython.int, kind=cython.uchar, size=Py_ssize_t, length=Py_ssize_t, step=Py_ssize_t, number=cython.ulonglong, mask=cython.ulonglong, below=cython.longlong)
    cdef tuple _row(self, bytes data, Py_ssize_t pos, bytes present)

@cython.locals(seconds=cython.ulonglong, step=Py_ssize_t)
cdef str _stamp(bytes data, Py_ssize_t pos)
@cython.locals(packed=cython.ulonglong, months=cython.ulonglong, day=cython.ulonglong, step=Py_ssize_t)
cdef str _moment(bytes data, Py_ssize_t pos)
