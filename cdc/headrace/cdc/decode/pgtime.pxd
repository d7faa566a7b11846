# C types for the compiled twin of pgtime.py; the Python file stays the only source of behaviour.
cimport cython

cdef long long _UNUSUAL

@cython.locals(size=Py_ssize_t, moment=cython.longlong)
cpdef object timestamp_us(str text)
@cython.locals(year=cython.longlong, month=cython.longlong, day=cython.longlong, hour=cython.longlong, minute=cython.longlong, second=cython.longlong, fraction=cython.longlong, unit=cython.longlong, end=Py_ssize_t)
cdef long long _usual(str text, Py_ssize_t size)
@cython.locals(number=cython.longlong, digit=cython.int, place=Py_ssize_t)
cdef long long _number(str text, Py_ssize_t at, Py_ssize_t digits)
cdef long long _days(long long year, long long month, long long day)
