# C types for the compiled twin of kernel.py; the Python file stays the only source of behaviour.
cimport cython

from headrace.features.state cimport EntityState, Layout

cdef class ViewKernel:
    cdef readonly object view
    cdef readonly Layout layout
    cdef readonly object counts
    cdef object _where
    cdef tuple _entity

    @cython.locals(values=tuple, counts=cython.bint, parts=list)
    cpdef object new_row(self, object change, object known)
    cpdef tuple deltas_of(self, object row, bint is_new)
    cpdef object newest(self, bytes key, object row)
    @cython.locals(place=Py_ssize_t, event_time=Py_ssize_t)
    cdef bint _may_be_out_of_line(self, tuple values)
    @cython.locals(place=Py_ssize_t)
    cdef tuple _filled(self, object change, tuple after, object known)
    @cython.locals(index=Py_ssize_t)
    cdef object _time_us(self, object change, tuple values)

cdef class ViewBatch:
    cdef ViewKernel _kernel
    cdef public list changes
    cdef list _moves
    cdef dict _contributions, _states, _touched

    cpdef list wanted_rows(self)
    @cython.locals(kernel=ViewKernel, current=dict, longest_us=cython.longlong, old=list, counting=list)
    cpdef resolve(self, object stored)
    @cython.locals(keys=dict)
    cpdef list wanted_entities(self)
    @cython.locals(kernel=ViewKernel, keeps_newest=cython.bint, has_event_time=cython.bint, met=dict, met_at=cython.longlong, offset=cython.longlong, now_us=cython.longlong,
                   state=EntityState, moment=cython.longlong)
    cpdef apply(self, dict states)
    @cython.locals(state=EntityState)
    cpdef list wanted_rebuilds(self)
    cpdef touch(self, tuple entity, EntityState state)
    @cython.locals(writes=list, state=EntityState, contributions=dict)
    cpdef tuple finish(self, long long log_time_us)
    @cython.locals(state=EntityState)
    cdef EntityState _state(self, tuple entity, long long now_us)
