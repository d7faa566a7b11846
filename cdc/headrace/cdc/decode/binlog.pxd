# C types for the compiled twin of binlog.py; the Python file stays the only source of behaviour.
cimport cython

cdef int _QUERY, _STOP, _ROTATE, _INTVAR, _RAND, _USER_VAR, _FORMAT, _XID, _TABLE_MAP
cdef int _INCIDENT, _HEARTBEAT, _ROWS_QUERY, _GTID, _ANONYMOUS, _PREVIOUS_GTIDS
cdef int _TRANSACTION_CONTEXT, _VIEW_CHANGE, _XA_PREPARE, _PAYLOAD, _HEARTBEAT2, _GTID_TAGGED
cdef int _ANNOTATE, _CHECKPOINT, _MARIADB_GTID, _GTID_LIST, _ENCRYPTION, _QUERY_COMPRESSED, _PARTIAL_UPDATE
cdef int _UNTOLD, _ABSENT, _PRESENT, _ARTIFICIAL
cdef Py_ssize_t _HEADER_BYTES, _CRC_BYTES

@cython.final
cdef class BinlogDecoder:
    cdef public dict versions
    cdef public object passed
    cdef public object gtids
    cdef public list transactions
    cdef public bint in_transaction
    cdef public long long server_time_us
    cdef str _file
    cdef unsigned long long _pos
    cdef object _id_prefix
    cdef object _wants
    cdef int _checksums
    cdef dict _maps
    cdef dict _by_id
    cdef dict _prepared
    cdef object _undone
    cdef object _stands_for
    cdef object _known
    cdef object _altered
    cdef bytes _unread
    cdef tuple _gtid
    cdef bint _ends
    cdef unsigned long long _server
    cdef tuple _behind
    cdef object _unpacking
    cdef tuple _began
    cdef list _rows
    cdef Py_ssize_t _size
    cdef Py_ssize_t _given
    cdef Py_ssize_t _seen
    cdef object _left_out
    cdef list _savepoints
    cdef bint _has_begun
    cdef bint _is_passed_over
    cdef long long _commit_us
    cdef tuple _rows_at

    @cython.locals(kind=cython.int, size=Py_ssize_t, log_pos=cython.ulonglong, flags=cython.int, seconds=cython.longlong)
    cdef _feed(self, bytes event)
    @cython.locals(kind=cython.int, size=Py_ssize_t, log_pos=cython.ulonglong, flags=cython.int)
    cdef _end_of_event(self, bytes body)
    cdef _pulse(self, str file, unsigned long long log_pos)
    cdef _pass(self, object place)
    @cython.locals(end=Py_ssize_t, fits=cython.bint)
    cdef bytes _checked(self, bytes event, int kind)
    @cython.locals(counted=cython.ulonglong, high=cython.ulonglong, pos=cython.ulonglong)
    cdef _move(self, unsigned long long log_pos, Py_ssize_t size)
    cdef _event(self, int kind, bytes body, int flags)
    cdef _take_map(self, bytes body)
    @cython.locals(pos=Py_ssize_t, version=cython.int, width=Py_ssize_t, first_new=Py_ssize_t)
    cdef _take_rows(self, int kind, bytes body)
    cdef _commit(self)
    cdef _resume(self)
    cdef _unpack(self)
