# C types for the compiled twin of state.py; the Python file stays the only source of behaviour.
cimport cython

from headrace.features.tiles cimport Track

cdef int _SUM, _BAGS, _NEWEST, _RATIO

cdef class Layout:
    cdef readonly tuple latest_columns, lifetime_slots, tracks, bags, readers
    cdef readonly long long longest_us
    cdef tuple _lifts, _groups, _group_of, _bag_lifts

    @cython.locals(items=list, unreadable=Py_ssize_t)
    cpdef tuple items(self, object values, long long time_us, long long offset)
    @cython.locals(unreadable=Py_ssize_t, lifted=list, column=Py_ssize_t, made=list, result=list, number=Py_ssize_t)
    cpdef tuple deltas(self, object values)

@cython.locals(pairs=list, place=Py_ssize_t, first=Py_ssize_t, width=Py_ssize_t, slot=Py_ssize_t, amounts=tuple)
cdef tuple _picked(tuple group, list lifted)

@cython.final
cdef class EntityState:
    cdef readonly Layout layout
    cdef public long long applied, event_time_us, rows
    cdef public list lifetime, tracks, bags
    cdef public object latest
    cdef public bint must_rebuild

    @cython.locals(lifetime=list, track=Track, place=Py_ssize_t, slot=Py_ssize_t)
    cpdef shift(self, long long time_us, tuple deltas, bint is_added)
    cpdef bint has_short_bags(self)
    cpdef load(self, Layout layout, bytes data, long long now_us)
    cpdef put(self, long long time_us, object items, bint is_added)
    @cython.locals(track=Track)
    cpdef advance(self, long long now_us)
    @cython.locals(track=Track)
    cpdef due_us(self)
    @cython.locals(result=list, reader=tuple, kind=cython.int)
    cpdef tuple values(self)
    @cython.locals(sums=list, kind=cython.int, place=Py_ssize_t, window=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, track=Track)
    cdef object _aggregated(self, tuple reader)
    @cython.locals(track=Track)
    cpdef bytes encode(self)
