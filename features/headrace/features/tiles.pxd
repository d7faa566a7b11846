# C types for the compiled twin of tiles.py; the Python file stays the only source of behaviour.
cimport cython

cdef long long _NEVER, _FOREVER
cdef bytes _ONE_TILE
cdef object _INT64, _PLAIN, _DOUBLE

@cython.final
cdef class Track:
    cdef tuple _lengths_us, _slots
    cdef long long _hop_us, _high, _floor, _future
    cdef object _indexes
    cdef dict _open
    cdef list _parts, _low, _first
    cdef readonly list totals

    @cython.locals(index=cython.longlong, oldest=cython.longlong, tile=list, window=Py_ssize_t, place=Py_ssize_t, is_gone=cython.bint, low=list, first=list, totals=list)
    cpdef add(self, long long time_us, tuple deltas, bint is_added=*)
    @cython.locals(hop_us=cython.longlong, high=cython.longlong, was_high=cython.longlong, entering=Py_ssize_t, entered=Py_ssize_t, low=list, first=list,
                   lengths=tuple, floor=cython.longlong, window=Py_ssize_t, new_low=cython.longlong, oldest=cython.longlong,
                   total=list, place=Py_ssize_t, tile=list, slot=Py_ssize_t, gone=Py_ssize_t)
    cpdef advance(self, long long now_us)
    @cython.locals(hop_us=cython.longlong, due=cython.longlong, lengths=tuple, first=list, window=Py_ssize_t, oldest=cython.longlong, leaves_us=cython.longlong)
    cpdef due_us(self)
    @cython.locals(parts=list, tile=list, place=Py_ssize_t, newest=cython.longlong, index=cython.longlong)
    cpdef bytes encode(self)
    @cython.locals(tiles=dict, indexes=list, numbers=list)
    cpdef load(self, bytes data, long long now_us)
    @cython.locals(tile=list)
    cdef list _tile(self, Py_ssize_t place)
    @cython.locals(slots=tuple, numbers=list, slot=Py_ssize_t)
    cdef bytes _packed(self, long long index, list tile)
    @cython.locals(slots=tuple, tile=list, slot=Py_ssize_t)
    cdef list _unpacked(self, list numbers)
    @cython.locals(place=Py_ssize_t, index=cython.longlong)
    cdef long long _oldest_after(self, long long low, long long high)

@cython.locals(slot=Py_ssize_t)
cdef _shift(list sums, tuple deltas, bint is_added)
cdef bint _is_empty(list tile)
cpdef pack_slot(object how, object amount)
cdef _small(object amount)
@cython.locals(shift=cython.longlong)
cpdef unpack_slot(object how, object packed)
cdef _large(object packed)
