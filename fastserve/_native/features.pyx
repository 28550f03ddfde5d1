"""Features to what a model takes: csrc/{pack,pool,vocab}.h for Python.

Steps are made under the GIL and run without it. What they read and write is pinned by the Step; a Step may be
run by one thread at a time, a Vocab and a Pool be used by any number. What users see of it is
fastserve.client.features.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastserve._native.c_column cimport fs_column
from fastserve._native.c_pack cimport (
    FS_OUT_F32,
    FS_OUT_F64,
    FS_OUT_I32,
    FS_OUT_I64,
    FS_PACK_BUCKETIZE,
    FS_PACK_CROSS,
    FS_PACK_DENSE,
    FS_PACK_FINGERPRINT,
    FS_PACK_HASH,
    FS_PACK_LOOKUP,
    fs_dense,
    fs_pack_run,
    fs_pack_step,
    fs_pool,
    fs_pool_free,
    fs_pool_new,
    fs_pool_slots,
    fs_vocab,
    fs_vocab_bytes,
    fs_vocab_free,
    fs_vocab_new,
    fs_vocab_terms,
)
from fastserve._native.columns cimport Column

from fastserve._native.columns import ColumnError


@cython.final
cdef class Pool:
    """Threads that help: `threads` counts the one that calls."""

    cdef fs_pool *c

    def __cinit__(self, uint32_t threads):
        self.c = fs_pool_new(threads - 1 if threads > 0 else 0)
        if self.c is NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef fs_pool *pool = self.c
        self.c = NULL
        with nogil:
            fs_pool_free(pool)

    @property
    def threads(self):
        return fs_pool_slots(self.c)


@cython.final
cdef class Vocab:
    """A table of terms, of text or of integers. ColumnError where one is there twice."""

    cdef fs_vocab *c
    cdef readonly bint is_text

    def __cinit__(self, Column terms):
        cdef int64_t repeated = -1
        if terms.c.width != 1:
            raise ColumnError(f"{terms.name}: the terms are [n]")
        with nogil:
            self.c = fs_vocab_new(&terms.c, &repeated)
        if self.c is NULL:
            if repeated < 0:
                raise MemoryError
            raise ColumnError(f"{terms.name}: the term at {repeated} stands there before as well")
        self.is_text = terms.is_text

    def __dealloc__(self):
        fs_vocab_free(self.c)

    def __len__(self):
        return fs_vocab_terms(self.c)

    @property
    def nbytes(self):
        """Bytes of memory."""
        return fs_vocab_bytes(self.c)


@cython.final
cdef class Step:
    """One op over columns of the same length, into `out`, an array of the shape of its result."""

    cdef fs_pack_step c
    cdef fs_column *columns
    cdef fs_dense *dense_of
    cdef float *boundaries
    cdef Py_buffer out
    cdef bint has_out
    cdef list pinned

    def __init__(self, list columns, out):
        cdef Column column
        cdef uint32_t i
        if self.pinned is not None:
            raise RuntimeError("a Step is made once")
        if not columns:
            raise ValueError("a step of no columns")
        self.pinned = list(columns)
        self.columns = <fs_column *>calloc(len(columns), sizeof(fs_column))
        if self.columns is NULL:
            raise MemoryError
        for i, column in enumerate(columns):
            self.columns[i] = column.c
            if column.c.rows != self.columns[0].rows:
                raise ColumnError(
                    f"{column.name}: has {column.c.rows} rows where other columns have {self.columns[0].rows}"
                )
        self.c.columns = self.columns
        self.c.n_columns = len(columns)
        self.c.rows = self.columns[0].rows
        self.c.refused_row = -1
        self.take_out(out)

    def __dealloc__(self):
        if self.has_out:
            PyBuffer_Release(&self.out)
        free(self.columns)
        free(self.dense_of)
        free(self.boundaries)

    cdef void take_out(self, array) except *:
        """`array` is [n] or [n, k], and has been checked by the caller as to k."""
        cdef bytes code
        PyObject_GetBuffer(array, &self.out, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
        self.has_out = True
        code = self.out.format if self.out.format is not NULL else b"B"
        if code in (b"l", b"q") and self.out.itemsize == 8:
            self.c.out.kind = FS_OUT_I64
        elif code in (b"i", b"l") and self.out.itemsize == 4:
            self.c.out.kind = FS_OUT_I32
        elif code in (b"L", b"Q") and self.out.itemsize == 8:
            self.c.out.kind = FS_OUT_I64  # fingerprints
        elif code == b"f":
            self.c.out.kind = FS_OUT_F32
        elif code == b"d":
            self.c.out.kind = FS_OUT_F64
        else:
            raise ValueError(f"an array of format {code!r} cannot be written to")
        if self.out.ndim not in (1, 2) or self.out.shape[0] != self.c.rows:
            raise ValueError("the array to write to has not the shape of the result")
        self.c.out.data = <uint8_t *>self.out.buf
        self.c.out.row_stride = self.out.strides[0]
        self.c.out.item_stride = self.out.strides[1] if self.out.ndim == 2 else 0

    @property
    def name(self):
        """Of the first column, for errors."""
        return self.pinned[0].name

    @property
    def items_in(self):
        """Values that it reads."""
        cdef uint32_t i
        cdef int64_t width = 0
        for i in range(self.c.n_columns):
            width += self.columns[i].width
        return self.c.rows * width

    cdef int64_t items(self):
        return self.out.shape[1] if self.out.ndim == 2 else 1

    cdef int check(self, int64_t width, bint integers) except -1:
        """The result has `width` items a row, and is of integers."""
        cdef bint made = self.c.out.kind == FS_OUT_I64 or self.c.out.kind == FS_OUT_I32
        if width != self.items() or (integers and not made):
            raise ValueError("the array to write to has not the shape or the type of the result")
        return 0

    cdef void take_mask(self, bytes mask):
        if mask is not None:
            self.pinned.append(mask)
            self.c.has_mask = True
            self.c.mask.data = <const uint8_t *>PyBytes_AS_STRING(mask)
            self.c.mask.len = PyBytes_GET_SIZE(mask)

    cdef void take_hasher(self, uint64_t buckets, key):
        self.c.hasher.buckets = buckets
        if key is not None:
            self.c.hasher.strong = True
            self.c.hasher.key[0], self.c.hasher.key[1] = key

    @staticmethod
    def fingerprint(Column column, out):
        cdef Step step = Step([column], out)
        step.check(column.c.width, True)
        step.c.op = FS_PACK_FINGERPRINT
        return step

    @staticmethod
    def hash(Column column, out, uint64_t buckets, key, bytes mask):
        """`key` is two words for SipHash, None for Fingerprint64."""
        cdef Step step = Step([column], out)
        if buckets == 0:
            raise ValueError("no buckets")
        step.check(column.c.width, True)
        step.c.op = FS_PACK_HASH
        step.take_hasher(buckets, key)
        step.take_mask(mask)
        return step

    @staticmethod
    def cross(list columns, out, uint64_t buckets, uint64_t key):
        cdef Step step = Step(columns, out)
        cdef Column column
        if buckets == 0:
            raise ValueError("no buckets")
        for column in columns:
            if column.c.width != 1:
                raise ColumnError(f"{column.name}: a column that is crossed is [n] or [n, 1]")
        step.check(1, True)
        step.c.op = FS_PACK_CROSS
        step.take_hasher(buckets, None)
        step.c.hasher.key[0] = key
        return step

    @staticmethod
    def bucketize(Column column, out, list boundaries):
        cdef Step step = Step([column], out)
        cdef int64_t i
        step.check(column.c.width, True)
        step.boundaries = <float *>calloc(len(boundaries) + 1, sizeof(float))
        if step.boundaries is NULL:
            raise MemoryError
        for i in range(len(boundaries)):
            step.boundaries[i] = boundaries[i]
        step.c.op = FS_PACK_BUCKETIZE
        step.c.boundaries = step.boundaries
        step.c.n_boundaries = len(boundaries)
        return step

    @staticmethod
    def lookup(Column column, out, Vocab vocab, int64_t first_id, unknown, uint64_t buckets, key, bint mod,
               bytes mask):
        """`unknown` is the first id of unknown terms, None to refuse them."""
        cdef Step step = Step([column], out)
        if vocab.is_text != column.is_text:
            raise ValueError("a column and a vocabulary of different types")
        step.check(column.c.width, True)
        step.pinned.append(vocab)
        step.c.op = FS_PACK_LOOKUP
        step.c.vocab = vocab.c
        step.c.first_id = first_id
        step.c.refuse_unknown = unknown is None
        step.c.first_unknown = 0 if unknown is None else unknown
        step.c.unknown_mod = mod
        step.take_hasher(buckets, key)
        step.take_mask(mask)
        return step

    @staticmethod
    def dense(list columns, out, list refine):
        """`refine` is None, or (fill, mean, scale, log1p) for each item of a row."""
        cdef Step step = Step(columns, out)
        cdef Column column
        cdef int64_t i, width = 0
        for column in columns:
            width += column.c.width
        step.check(width, False)
        step.c.op = FS_PACK_DENSE
        if refine is None:
            return step
        if len(refine) != width:
            raise ValueError(f"{len(refine)} refinements of {width} items")
        step.dense_of = <fs_dense *>calloc(width + 1, sizeof(fs_dense))
        if step.dense_of is NULL:
            raise MemoryError
        for i, (fill, mean, scale, log1p) in enumerate(refine):
            step.dense_of[i].fill = fill
            step.dense_of[i].mean = mean
            step.dense_of[i].scale = scale
            step.dense_of[i].log1p = log1p
        step.c.dense = step.dense_of
        return step


def run(list steps, Pool pool=None):
    """Runs all steps, in parallel with a pool. None, or (step, row) of the first term that was refused."""
    cdef fs_pack_step *native = <fs_pack_step *>calloc(len(steps) + 1, sizeof(fs_pack_step))
    cdef fs_pool *threads = pool.c if pool is not None else NULL
    cdef uint32_t i, n = len(steps)
    cdef Step step
    cdef int rc
    if native is NULL:
        raise MemoryError
    try:
        for i, step in enumerate(steps):
            native[i] = step.c
        with nogil:
            rc = fs_pack_run(threads, native, n)
        if rc != 0:
            raise MemoryError
        for i in range(n):
            if native[i].refused_row >= 0:
                return i, native[i].refused_row
        return None
    finally:
        free(native)
