# C types for the compiled twin of kernel.py; the Python file stays the only source of behaviour.
cimport cython

from headrace.features.state cimport EntityState, Layout

@cython.final
cdef class SourceRow:
    cdef readonly tuple entity, values
    cdef readonly long long time_us, offset
    cdef readonly bint counts
    cdef tuple deltas, items

@cython.final
cdef class _Move:
    cdef object change
    cdef bytes key
    cdef list old
    cdef SourceRow new

cdef class ViewKernel:
    cdef readonly object view
    cdef readonly Layout layout
    cdef readonly object counts
    cdef object _where
    cdef tuple _entity

    @cython.locals(values=tuple, counts=cython.bint, parts=list)
    cpdef SourceRow new_row(self, object change, SourceRow known)
    cpdef tuple deltas_of(self, SourceRow row, bint is_new)
    cpdef object newest(self, bytes key, SourceRow row)
    @cython.locals(place=Py_ssize_t, event_time=Py_ssize_t)
    cdef bint _may_be_out_of_line(self, tuple values)
    @cython.locals(place=Py_ssize_t)
    cdef tuple _filled(self, object change, tuple after, SourceRow known)
    @cython.locals(index=Py_ssize_t)
    cdef object _time_us(self, object change, tuple values)

cdef class ViewBatch:
    cdef ViewKernel _kernel
    cdef public list changes
    cdef list _moves
    cdef dict _contributions, _states, _touched

    cpdef list wanted_rows(self)
    @cython.locals(kernel=ViewKernel, current=dict, longest_us=cython.longlong, old=list, changes=Py_ssize_t, offset=cython.longlong, has_old=cython.bint, was=SourceRow, known=SourceRow, moved=SourceRow, new=SourceRow, row=SourceRow)
    cpdef resolve(self, object stored)
    @cython.locals(keys=dict, move=_Move, row=SourceRow)
    cpdef list wanted_entities(self)
    @cython.locals(kernel=ViewKernel, keeps_newest=cython.bint, has_event_time=cython.bint, met=dict, met_at=cython.longlong, offset=cython.longlong, now_us=cython.longlong,
                   state=EntityState, moment=cython.longlong, move=_Move, row=SourceRow, new=SourceRow)
    cpdef apply(self, dict states)
    @cython.locals(state=EntityState)
    cpdef list wanted_rebuilds(self)
    cpdef touch(self, tuple entity, EntityState state)
    @cython.locals(writes=list, state=EntityState, contributions=dict, row=SourceRow)
    cpdef tuple finish(self, long long log_time_us)
    @cython.locals(state=EntityState)
    cdef EntityState _state(self, tuple entity, long long now_us)
