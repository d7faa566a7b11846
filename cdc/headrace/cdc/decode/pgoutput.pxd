# C types for the compiled twin of pgoutput.py; the Python file stays the only source of behaviour.
cimport cython

@cython.locals(first=cython.ulonglong)
cdef unsigned long long _u32(bytes data, Py_ssize_t pos) except? 0xFFFFFFFFFFFFFFFF
cdef unsigned long long _u64(bytes data, Py_ssize_t pos) except? 0xFFFFFFFFFFFFFFFF
@cython.locals(value=cython.ulonglong, below=cython.longlong)
cdef long long _time_us(bytes data, Py_ssize_t pos, str kind) except? -1

@cython.final
cdef class _Relation:
    cdef public object schema
    cdef public bytes kinds
    cdef public bytes identity
    cdef public Py_ssize_t count
    cdef public bint is_versioned

@cython.final
cdef class PgOutputDecoder:
    cdef public str id_prefix
    cdef public dict type_names
    cdef public dict primary_keys
    cdef public dict versions
    cdef public list transactions
    cdef public dict relations
    cdef public dict messages
    cdef public tuple message_patterns
    cdef public unsigned long long wal_end
    cdef public long long server_time_us
    cdef public bint reply_requested
    cdef public unsigned long long wants_key_of
    cdef public bint in_transaction
    cdef public unsigned long long skip_until
    cdef public list pieces
    cdef public object spilled_commit
    cdef public Py_ssize_t begin_index
    cdef unsigned long long _stream_xid
    cdef bint _is_spilling
    cdef bytearray _spill
    cdef list _announced
    cdef object _replay_commit
    cdef Py_ssize_t _first_ordinal
    cdef list _rows
    cdef Py_ssize_t _size
    cdef unsigned long long _xid
    cdef unsigned long long _commit_lsn
    cdef long long _commit_us
    cdef Py_ssize_t _pos

    cpdef Py_ssize_t feed(self, list frames, Py_ssize_t start=*) except -1
    @cython.locals(index=Py_ssize_t, count=Py_ssize_t, size=Py_ssize_t, data=bytes, kind=cython.uchar, outcome=cython.int)
    cdef Py_ssize_t _feed(self, list frames, Py_ssize_t start) except -1
    @cython.locals(pos=Py_ssize_t, end=Py_ssize_t, after=Py_ssize_t, subxid=cython.ulonglong, kind=cython.uchar, data=bytes, is_known=bint)
    cpdef Py_ssize_t replay(self, bytes piece, Py_ssize_t start, frozenset aborted, Py_ssize_t max_bytes) except -1
    cdef object _keepalive(self, bytes data)
    @cython.locals(kind=cython.uchar)
    cdef int _message(self, bytes data, Py_ssize_t size) except -1
    @cython.locals(xid=cython.ulonglong, end_lsn=cython.ulonglong)
    cdef int _stream_control(self, bytes data, Py_ssize_t size, unsigned char kind) except -1
    cdef object _streamed(self, bytes data, Py_ssize_t size, unsigned char kind)
    @cython.locals(spill=bytearray, length=Py_ssize_t)
    cdef object _spill_message(self, bytes data, unsigned long long subxid, Py_ssize_t body)
    cdef object _cut_piece(self)
    cdef object _begin(self, bytes data, Py_ssize_t size)
    @cython.locals(end_lsn=cython.ulonglong, rows=list)
    cdef int _commit(self, bytes data, Py_ssize_t size) except -1
    @cython.locals(ordinal=Py_ssize_t, last=Py_ssize_t, changes=list, news=list, relation=_Relation, position=str, identifier=str, text=str)
    cdef object _transaction(self, list rows, unsigned long long end_lsn, long long commit_us, Py_ssize_t first_ordinal, bint is_last)
    @cython.locals(lsn=cython.ulonglong, prefix=str, start=Py_ssize_t, relation=_Relation, content=bytes, time_us=cython.longlong)
    cdef object _logical_message(self, bytes data, Py_ssize_t size)
    cdef _Relation _message_relation(self, str prefix)
    cdef _Relation _relation(self, bytes data, str kind)
    @cython.locals(relation=_Relation, row=tuple)
    cdef object _insert(self, bytes data, Py_ssize_t size)
    @cython.locals(relation=_Relation, before=tuple, after=tuple, pos=Py_ssize_t, part=cython.uchar)
    cdef object _update(self, bytes data, Py_ssize_t size)
    @cython.locals(relation=_Relation, before=tuple, part=cython.uchar)
    cdef object _delete(self, bytes data, Py_ssize_t size)
    cdef object _truncate(self, bytes data, Py_ssize_t size)
    @cython.locals(count=Py_ssize_t, column=Py_ssize_t, kinds=bytes, identity=bytes, values=list, form=cython.uchar, length=Py_ssize_t, end=Py_ssize_t, kind=cython.uchar)
    cdef tuple _tuple(self, bytes data, Py_ssize_t pos, Py_ssize_t size, _Relation relation, bint only_key)
    @cython.locals(modifier=cython.longlong)
    cdef bint _announce(self, bytes data, Py_ssize_t size) except -1
    @cython.locals(end=Py_ssize_t)
    cdef str _cstring(self, bytes data, Py_ssize_t pos, Py_ssize_t size)
