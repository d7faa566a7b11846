# C types for the compiled twin of copytext.py; the Python file stays the only source of behaviour.
cimport cython

@cython.locals(rows=list, line=bytes)
cpdef list copy_rows(list lines, bytes kinds)
@cython.locals(count=Py_ssize_t, column=Py_ssize_t, kind=cython.uchar, values=list, parts=list, part=bytes, has_escapes=bint)
cdef tuple _row(bytes line, bytes kinds)
