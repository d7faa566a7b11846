# C types for the compiled twin of tiles.py; the Python file stays the only source of behaviour.
cimport cython

cdef long long _NEVER, _FOREVER
cdef bytes _ONE_TILE
cdef object _INT64, _PLAIN, _DOUBLE

@cython.final
cdef class Track:
    cdef tuple _lengths_us, _slots
    cdef long long _hop_us, _high, _floor, _future
    cdef dict _tiles, _packed
    cdef list _low, _first
    cdef readonly list totals

    @cython.locals(index=cython.longlong, oldest=cython.longlong, tile=list, window=Py_ssize_t, is_gone=cython.bint, low=list, first=list, totals=list, tiles=dict)
    cpdef add(self, long long time_us, tuple deltas, bint is_added=*)
    @cython.locals(hop_us=cython.longlong, high=cython.longlong, was_high=cython.longlong, entering=list, low=list, first=list, has_moved=cython.bint,
                   lengths=tuple, floor=cython.longlong, window=Py_ssize_t, new_low=cython.longlong, was_low=cython.longlong, oldest=cython.longlong,
                   total=list, index=cython.longlong, tile=list, slot=Py_ssize_t)
    cpdef advance(self, long long now_us)
    @cython.locals(hop_us=cython.longlong, due=cython.longlong, lengths=tuple, first=list, window=Py_ssize_t, oldest=cython.longlong, leaves_us=cython.longlong)
    cpdef due_us(self)
    @cython.locals(packed=dict, tiles=dict, slots=tuple, tile=list, parts=list, slot=Py_ssize_t)
    cpdef bytes encode(self)
    @cython.locals(tiles=dict, slots=tuple, parts=list, tile=list, slot=Py_ssize_t)
    cpdef load(self, bytes data, long long now_us)
    @cython.locals(high=cython.longlong, index=cython.longlong)
    cdef long long _oldest_after(self, long long low)
    @cython.locals(high=cython.longlong, index=cython.longlong)
    cdef long long _oldest_future(self)

@cython.locals(slot=Py_ssize_t)
cdef _shift(list sums, tuple deltas, bint is_added)
cdef bint _is_empty(list tile)
cpdef pack_slot(object how, object amount)
cdef _small(object amount)
