"""Channel: calls to a set of servers, for threads or for one event loop: csrc/channel.h for Python.

A thread that calls drives the connections itself, without the GIL, and looks for signals and for `close` ten
times a second. For an event loop, `attach` lets the loop watch the channel's descriptor; a call is then a
future. What a call's message points to (arrays, headers) is kept by its Call until it is over. Knows no
model's meaning beyond the Predict codec; knows no names of hosts: endpoints are addresses.
"""

import threading
from base64 import b64encode

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.math cimport ceil
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.types cimport pid_t
from posix.unistd cimport getpid

from fastserve._native.c_channel cimport (
    FS_LEAST_OUTSTANDING,
    FS_ROUND_ROBIN,
    fs_channel,
    fs_channel_call,
    fs_channel_cancel,
    fs_channel_config,
    fs_channel_drive,
    fs_channel_due,
    fs_channel_endpoints,
    fs_channel_fd,
    fs_channel_free,
    fs_channel_new,
    fs_channel_read,
    fs_channel_start,
    fs_channel_stats,
    fs_channel_update,
    fs_channel_wait,
    fs_endpoint,
    fs_endpoint_stats,
    fs_header,
    fs_tls_context,
    sockaddr_storage,
)
from fastserve._native.c_compress cimport FS_DEFLATE, FS_GZIP, FS_IDENTITY, fs_deflate, fs_inflate
from fastserve._native.c_engine cimport fs_now_us
from fastserve._native.c_predict_call cimport fs_slab_alloc, fs_slab_free
from fastserve._native.c_slab cimport fs_slab, fs_slab_new, fs_slab_release
from fastserve._native.c_sockaddr cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    htons,
    inet_pton,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_un,
)
from fastserve._native.c_status cimport FS_INTERNAL, FS_RESOURCE_EXHAUSTED, fs_error, fs_slice
from fastserve._native.c_tls cimport fs_tls_config, fs_tls_context_new, fs_tls_context_unref
from fastserve._native.client_codec cimport (
    Block,
    Inputs,
    Memory,
    Request,
    Spec,
    decode,
    decode_joined,
    new_block,
    new_request,
)

from fastserve._native.client_codec import ReplyError
from fastserve.errors import FastServeError


cdef enum:
    CODE_OK = 0
    CODE_CANCELLED = 1

# How long a waiting thread sleeps at most before it looks for signals and for `close`.
cdef int64_t LOOK_US = 100_000

# Below this compressing saves no packet.
cdef size_t COMPRESS_FROM_BYTES = 1024

cdef bytes PREDICT = b"/tensorflow.serving.PredictionService/Predict"

_ENCODINGS = {None: FS_IDENTITY, "gzip": FS_GZIP, "deflate": FS_DEFLATE}
_BALANCES = {"round_robin": FS_ROUND_ROBIN, "least_outstanding": FS_LEAST_OUTSTANDING}
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
# What the session writes itself, or HTTP/2 does not allow.
_OWN_NAMES = frozenset(
    ("te", "content-type", "content-length", "connection", "host", "transfer-encoding", "upgrade", "keep-alive",
     "proxy-connection", "user-agent")
)


class ChannelFailure(Exception):
    """A call, or the channel, failed. `code` is gRPC's number of the status, `details` the text."""

    def __init__(self, code, details):
        super().__init__(details)
        self.code = code
        self.details = details


class TlsFailure(ChannelFailure):
    """TLS cannot be set up: no OpenSSL, PEM that cannot be read, a key that does not fit."""


class ClosedError(FastServeError, RuntimeError):
    """The client was closed, or the process has forked since it was made."""


cdef str error_text(const fs_error *err):
    return (<const char *>err.msg)[:err.len].decode("utf-8", "replace")


# ---- addresses ---------------------------------------------------------------------------------------------


cdef int copy_text(char *dst, size_t room, bytes text, str what) except -1:
    if len(text) >= room:
        raise ValueError(f"{what} {text.decode(errors='replace')!r} is longer than {room - 1} bytes")
    memcpy(dst, PyBytes_AS_STRING(text), len(text) + 1)
    return 0


cdef int fill_endpoint(fs_endpoint *endpoint, tuple address) except -1:
    """`address` is (name, "unix", path) or (name, host, port, scope), host as text."""
    cdef sockaddr_in *v4 = <sockaddr_in *>&endpoint.address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&endpoint.address
    cdef sockaddr_un *un = <sockaddr_un *>&endpoint.address
    cdef bytes host
    name = address[0].encode()
    memset(endpoint, 0, sizeof(fs_endpoint))
    memcpy(endpoint.name, PyBytes_AS_STRING(name), min(len(name), sizeof(endpoint.name) - 1))
    if address[1] == "unix":
        un.sun_family = AF_UNIX
        copy_text(un.sun_path, sizeof(un.sun_path), address[2], "the socket's path")
        endpoint.address_len = sizeof(sockaddr_un)
        return 0
    host = address[1].encode()
    if inet_pton(AF_INET, PyBytes_AS_STRING(host), &v4.sin_addr) == 1:
        v4.sin_family = AF_INET
        v4.sin_port = htons(address[2])
        endpoint.address_len = sizeof(sockaddr_in)
    elif inet_pton(AF_INET6, PyBytes_AS_STRING(host), &v6.sin6_addr) == 1:
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(address[2])
        v6.sin6_scope_id = address[3]
        endpoint.address_len = sizeof(sockaddr_in6)
    else:
        raise ValueError(f"{address[1]!r} is no IP address")
    return 0


cdef fs_endpoint *make_endpoints(list addresses) except NULL:
    """In a block of its own, for `free`."""
    cdef fs_endpoint *endpoints = <fs_endpoint *>calloc(len(addresses) + 1, sizeof(fs_endpoint))
    if endpoints is NULL:
        raise MemoryError
    try:
        for i, address in enumerate(addresses):
            fill_endpoint(&endpoints[i], address)
    except BaseException:
        free(endpoints)
        raise
    return endpoints


# ---- metadata ----------------------------------------------------------------------------------------------


def check_metadata(metadata) -> tuple:
    """Pairs of name and value as bytes that HTTP/2 may carry. TypeError and ValueError name the pair."""
    pairs = []
    if isinstance(metadata, (str, bytes)):
        raise TypeError(f'metadata is a sequence of pairs: (("authorization", "Bearer ..."),), not {metadata!r}')
    for pair in metadata.items() if hasattr(metadata, "items") else metadata:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"metadata is a sequence of pairs (name, value), and {pair!r} is none")
        name, value = pair
        if not isinstance(name, str):
            raise TypeError(f"metadata: the name {name!r} is not text")
        name = name.lower()
        if not name or not _NAME_LETTERS.issuperset(name):
            raise ValueError(f"metadata: the name {name!r} has letters other than a-z, 0-9, '_', '-' and '.'")
        if name.startswith("grpc-") or name in _OWN_NAMES:
            raise ValueError(f"metadata: {name!r} is gRPC's own")
        if name.endswith("-bin"):
            if not isinstance(value, (bytes, bytearray)):
                raise TypeError(f"metadata: the value of {name!r} is bytes, as '-bin' says")
            value = b64encode(value).rstrip(b"=")
        else:
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            if not isinstance(value, str):
                raise TypeError(f"metadata: the value of {name!r} is text, not {type(value).__name__}")
            if not (value.isascii() and value.isprintable()) or value != value.strip():
                raise ValueError(f"metadata: the value of {name!r} has letters that no header may have; "
                                 f"for bytes use a name that ends in '-bin'")
            value = value.encode()
        pairs.append((name.encode(), value))
    return tuple(pairs)


cdef fs_header *make_headers(tuple pairs) except NULL:
    """In a block of its own, for `free`; they point into the pairs."""
    cdef fs_header *headers = <fs_header *>calloc(len(pairs) + 1, sizeof(fs_header))
    cdef bytes name, value
    if headers is NULL:
        raise MemoryError
    for i, (name, value) in enumerate(pairs):
        headers[i].name = bytes_slice(name)
        headers[i].value = bytes_slice(value)
    return headers


cdef inline fs_slice bytes_slice(bytes data):
    cdef fs_slice s
    s.data = <const uint8_t *>PyBytes_AS_STRING(data)
    s.len = PyBytes_GET_SIZE(data)
    return s


# ---- calls -------------------------------------------------------------------------------------------------


# What a finished call of a loop waits in until the loop takes it. `next` is written under the channel's lock,
# by the loop's thread, which alone drives. A call that is in the air has a reference of its own, unseen by the
# garbage collector: the channel points to it. It knows no future, which would keep the loop alive with it.
cdef struct Flight:
    fs_channel_call call  # first
    Flight *next
    Flight **landed
    PyObject *owner


cdef void land(fs_channel_call *call) noexcept nogil:
    cdef Flight *flight = <Flight *>call
    flight.next = flight.landed[0]
    flight.landed[0] = flight


@cython.final
@cython.no_gc_clear  # the channel knows it until it is over
@cython.freelist(16)
cdef class Call:
    """One call, and all that it points to."""

    cdef Flight flight
    cdef fs_slice piece      # of a message that is bytes
    cdef uint8_t *packed     # of one that is compressed
    cdef fs_header *headers  # its own; NULL: the channel's
    cdef object message
    cdef bytes path
    cdef tuple metadata

    def __dealloc__(self):
        fs_slab_free(self.packed)
        fs_slab_free(self.flight.call.reply)
        free(self.headers)


@cython.final
@cython.no_gc_clear  # its calls must be there when the channel is freed
cdef class Channel:
    """Calls to a set of servers.

    endpoints: list of (name, "unix", path as bytes) or (name, IP address, port, scope); settings: a dict of
    fs_channel_config's members in seconds and words (see fastserve.client.options); failure(code, details)
    makes the exception for a call that fails.
    """

    cdef fs_channel *c
    cdef fs_tls_context *tls
    cdef fs_header *headers
    cdef Memory memory
    cdef tuple metadata
    cdef list names
    cdef object failure
    cdef readonly bint closed
    cdef bint closing
    cdef int inside       # threads in a call
    cdef object left      # tells `close` that the last of them has gone
    cdef pid_t pid
    cdef int encoding
    cdef size_t max_reply_bytes
    cdef object decode_limit

    # Of an event loop.
    cdef object loop
    cdef object timer
    cdef int64_t timer_us
    cdef dict open  # calls in the air and their futures
    cdef Flight *landed

    def __init__(self, list endpoints, dict settings, failure):
        cdef fs_channel_config config
        cdef fs_error err
        if self.c is not NULL:
            raise RuntimeError("a Channel is made once")
        memset(&config, 0, sizeof(config))
        self.pid = getpid()
        self.memory = Memory()
        self.failure = failure
        self.metadata = settings["metadata"]
        self.headers = make_headers(self.metadata)
        self.encoding = _ENCODINGS[settings["compression"]]
        self.max_reply_bytes = settings["max_reply_bytes"]
        self.decode_limit = settings["max_decoded_bytes"]
        self.names = [address[0] for address in endpoints]
        self.open = {}
        self.left = threading.Event()

        config.n_endpoints = len(endpoints)
        config.connections = settings["connections"]
        config.balance = _BALANCES[settings["balance"]]
        copy_text(config.server_name, sizeof(config.server_name), settings["server_name"].encode(), "server_name")
        copy_text(config.authority, sizeof(config.authority), settings["authority"].encode(), "authority")
        config.max_reply_bytes = settings["max_reply_bytes"]
        config.connect_timeout_us = us(settings["connect_timeout"])
        config.stall_timeout_us = us(settings["stall_timeout"])
        config.keepalive_us = us(settings["keepalive"])
        config.keepalive_timeout_us = us(settings["keepalive_timeout"])
        config.reconnect_first_us = us(settings["reconnect_first"])
        config.reconnect_max_us = us(settings["reconnect_max"])
        config.max_attempts = settings["max_attempts"]
        for code in settings["retry_codes"]:
            config.retry_codes |= 1 << <uint32_t>code
        config.backoff_first_us = us(settings["backoff_first"])
        config.backoff_max_us = us(settings["backoff_max"])
        config.retry_ratio = settings["retry_ratio"]
        config.retry_burst = settings["retry_burst"]
        config.hedge_percentile = settings["hedge_percentile"]
        config.hedge_min_us = us(settings["hedge_min"])
        config.hedge_ratio = settings["hedge_ratio"]
        config.hedge_burst = settings["hedge_burst"]
        config.eject_failures = settings["eject_failures"]
        config.eject_us = us(settings["eject_for"])
        config.eject_at_most = settings["eject_at_most"]
        config.wait_for_ready = settings["wait_for_ready"]
        if settings["tls"] is not None:
            ca, certificate, key, verify = settings["tls"]
            self.open_tls(ca, certificate, key, verify)
            config.tls = self.tls
        cdef fs_endpoint *made = make_endpoints(endpoints)
        config.endpoints = made
        self.c = fs_channel_new(&config, &err)
        free(made)
        if self.c is NULL:
            raise ChannelFailure(err.code, error_text(&err))

    def __dealloc__(self):
        cdef Flight *flight
        # In a child process the connections are the parent's: they are left alone, TLS would say goodbye.
        if self.c is not NULL and self.pid == getpid():
            fs_channel_free(self.c)
            while self.landed is not NULL:  # calls that nobody waits for any more
                flight = self.landed
                self.landed = flight.next
                Py_DECREF(<object>flight.owner)
        if self.tls is not NULL:
            fs_tls_context_unref(self.tls)
        free(self.headers)

    cdef int open_tls(self, bytes ca, bytes certificate, bytes key, bint verify) except -1:
        cdef fs_tls_config config
        cdef fs_error err
        memset(&config, 0, sizeof(config))
        if ca is not None:
            config.ca = PyBytes_AS_STRING(ca)
        if certificate is not None:
            config.certificate = PyBytes_AS_STRING(certificate)
        if key is not None:
            config.key = PyBytes_AS_STRING(key)
        config.verify_peer = verify
        self.tls = fs_tls_context_new(&config, &err)
        if self.tls is NULL:
            raise TlsFailure(err.code, error_text(&err))
        return 0

    # ---- making a call -------------------------------------------------------------------------------------

    cdef int check(self) except -1:
        if self.closing:
            raise ClosedError("this client is closed: make another")
        if self.pid != getpid():
            raise ClosedError("this client was made before the process forked: make one in the child")
        return 0

    cdef Call new_call(self, bytes path, object message, object timeout, object metadata):
        cdef Call call = Call.__new__(Call)
        cdef fs_channel_call *c = &call.flight.call
        cdef Request request
        call.path = path
        call.message = message
        c.path = bytes_slice(path)
        if isinstance(message, Request):
            request = <Request>message
            c.pieces = request.pieces
            c.n_pieces = request.n_pieces
            c.message_bytes = request.bytes
        else:
            call.piece = bytes_slice(message)
            c.pieces = &call.piece
            c.n_pieces = 1 if call.piece.len > 0 else 0
            c.message_bytes = call.piece.len
        if self.encoding != FS_IDENTITY and c.message_bytes >= COMPRESS_FROM_BYTES:
            self.compress(call)
        c.headers = self.headers
        c.n_headers = len(self.metadata)
        if metadata:
            call.metadata = self.metadata + check_metadata(metadata)
            call.headers = make_headers(call.metadata)
            c.headers = call.headers
            c.n_headers = len(call.metadata)
        c.deadline_us = INT64_MAX if timeout is None else fs_now_us() + us(timeout)
        c.endpoint = -1
        return call

    cdef int compress(self, Call call) except -1:
        """What does not get smaller goes as it is."""
        cdef fs_channel_call *c = &call.flight.call
        cdef fs_slab *slab = fs_slab_new(0)
        cdef uint8_t *whole
        cdef size_t at = 0, n
        cdef uint32_t i
        if slab is NULL:
            raise MemoryError
        with nogil:
            whole = <uint8_t *>fs_slab_alloc(slab, c.message_bytes)
            if whole is not NULL:
                for i in range(c.n_pieces):
                    memcpy(whole + at, c.pieces[i].data, c.pieces[i].len)
                    at += c.pieces[i].len
                if fs_deflate(slab, self.encoding, whole, at, 0, &call.packed, &n) == 0:
                    call.piece.data = call.packed
                    call.piece.len = n
                    c.pieces = &call.piece
                    c.n_pieces = 1
                    c.message_bytes = n
                    c.encoding = self.encoding
                fs_slab_free(whole)
            fs_slab_release(slab)
        return 0

    cdef Block reply_of(self, Call call):
        """The answer's bytes, inflated, of a call that is over. Raises what `failure` makes."""
        cdef fs_channel_call *c = &call.flight.call
        cdef Block block
        if c.code != CODE_OK:
            raise self.failure(c.code, error_text(&c.error))
        if c.reply_encoding != FS_IDENTITY:
            self.inflate(call)
        block = new_block(c.reply, c.reply_bytes)
        c.reply = NULL
        return block

    cdef int inflate(self, Call call) except -1:
        cdef fs_channel_call *c = &call.flight.call
        cdef fs_slab *slab = fs_slab_new(0)
        cdef uint8_t *out = NULL
        cdef size_t n = 0
        cdef fs_error err
        cdef int rc
        if slab is NULL:
            raise MemoryError
        with nogil:
            rc = fs_inflate(slab, c.reply_encoding, c.reply, c.reply_bytes, self.max_reply_bytes, &out, &n, &err)
            fs_slab_release(slab)
        if rc != 0:
            raise self.failure(-rc, f"{self.who(call)}the compressed reply: {error_text(&err)}")
        fs_slab_free(c.reply)
        c.reply = out
        c.reply_bytes = n
        c.reply_encoding = FS_IDENTITY
        return 0

    cdef str who(self, Call call):
        cdef int endpoint = call.flight.call.endpoint
        return f"{self.names[endpoint]}: " if 0 <= endpoint < len(self.names) else ""

    cdef tuple decode_reply(self, Call call, Block reply, object into):
        try:
            return decode(reply, self.memory, into, self.decode_limit)
        except ReplyError as error:
            raise self.failure(FS_INTERNAL, f"{self.who(call)}{error}") from None

    cdef tuple join_replies(self, list replies, list rows, object into):
        try:
            return decode_joined(replies, rows, self.memory, into, self.decode_limit)
        except ReplyError as error:
            raise self.failure(FS_INTERNAL, str(error)) from None

    # ---- by threads ----------------------------------------------------------------------------------------

    cdef int wait(self, Call call, bint start) except -1:
        """Until the call is over; on an exception it is cancelled."""
        cdef fs_channel_call *c = &call.flight.call
        cdef bint done
        while True:
            with nogil:
                if start:
                    fs_channel_start(self.c, c)
                    start = False
                done = fs_channel_wait(self.c, c, fs_now_us() + LOOK_US)
            if done:
                return 0
            try:
                PyErr_CheckSignals()
                if self.closing:
                    raise self.failure(CODE_CANCELLED, "the client was closed")
            except BaseException:
                self.give_up(call)
                raise

    cdef void give_up(self, Call call) noexcept:
        with nogil:
            fs_channel_cancel(self.c, &call.flight.call)

    cdef void leave(self) noexcept:
        self.inside -= 1
        if self.closing and self.inside == 0:
            self.left.set()

    def unary(self, bytes path not None, bytes message not None, timeout, metadata, bint again=True) -> bytes:
        """One call of any unary method: bytes to bytes. Without `again` it is made again only if no server has
        looked at it."""
        cdef Call call
        cdef Block reply
        self.check()
        call = self.new_call(path, message, timeout, metadata)
        call.flight.call.no_retry = not again
        self.inside += 1
        try:
            self.wait(call, True)
        finally:
            self.leave()
        reply = self.reply_of(call)
        return PyBytes_FromStringAndSize(<const char *>reply.data, reply.len)

    def predict(self, tuple spec not None, inputs, timeout, metadata, into) -> tuple:
        """Puts the outputs into `into`; (model, version, signature). `spec` is Spec's arguments."""
        cdef Call call
        self.check()
        call = self.new_call(PREDICT, new_request(Spec(*spec), Inputs(self.memory, inputs), 0, -1), timeout, metadata)
        self.inside += 1
        try:
            self.wait(call, True)
        finally:
            self.leave()
        return self.decode_reply(call, self.reply_of(call), into)

    def predict_many(self, tuple spec not None, inputs, choose, timeout, metadata, into) -> tuple:
        """As predict, in chunks: choose(rows) gives their sizes, and how many may be under way at once."""
        cdef Call call
        cdef list calls, rows, replies = []
        cdef int parallel, started = 0, taken = 0
        self.check()
        calls, rows, parallel = self.chunks(spec, inputs, choose, timeout, metadata)
        self.inside += 1
        try:
            for taken in range(len(calls)):
                while started < len(calls) and started < taken + parallel:
                    call = calls[started]
                    with nogil:
                        fs_channel_start(self.c, &call.flight.call)
                    started += 1
                call = calls[taken]
                self.wait(call, False)
                replies.append(self.reply_of(call))
        except BaseException:
            for call in calls[:started]:
                self.give_up(call)
            raise
        finally:
            self.leave()
        if len(calls) == 1 and rows[0] < 0:
            return self.decode_reply(calls[0], replies[0], into)
        return self.join_replies(replies, rows, into)

    cdef tuple chunks(self, tuple spec, inputs, choose, timeout, metadata):
        """The calls for the chunks, their rows, how many at once. All share one deadline."""
        cdef Inputs native = Inputs(self.memory, inputs)
        cdef Spec made = Spec(*spec)
        cdef Call call
        cdef int64_t first = 0, deadline_us = INT64_MAX if timeout is None else fs_now_us() + us(timeout)
        sizes, parallel = choose(native.rows)
        if len(sizes) <= 1:
            calls = [self.new_call(PREDICT, new_request(made, native, 0, -1), timeout, metadata)]
            return calls, [-1], 1
        calls = []
        for rows in sizes:
            call = self.new_call(PREDICT, new_request(made, native, first, rows), timeout, metadata)
            call.flight.call.deadline_us = deadline_us
            calls.append(call)
            first += rows
        return calls, sizes, parallel

    # ---- by an event loop ----------------------------------------------------------------------------------

    def attach(self, loop):
        """Lets the loop drive: from now on every method is for its thread alone."""
        self.check()
        self.loop = loop
        self.timer_us = INT64_MAX
        loop.add_reader(fs_channel_fd(self.c), self.drive)

    def drive(self):
        cdef int64_t due_us
        if self.closing:
            return
        with nogil:
            due_us = fs_channel_drive(self.c)
        self.deliver()
        if not self.closing:
            self.arm(due_us)

    def tick(self):
        self.timer = None
        self.timer_us = INT64_MAX
        self.drive()

    cdef int arm(self, int64_t due_us) except -1:
        """A timer that is there and comes sooner is left: it will look again."""
        if due_us >= self.timer_us:
            return 0
        if self.timer is not None:
            self.timer.cancel()
        self.timer_us = due_us
        self.timer = self.loop.call_later(max(0, due_us - fs_now_us()) / 1e6, self.tick)
        return 0

    cdef object send(self, Call call):
        """Starts a call; the future gives the reply's Block."""
        cdef fs_channel_call *c = &call.flight.call
        cdef int64_t due_us
        self.check()  # the client may have been closed since the call was made
        future = self.loop.create_future()
        call.flight.landed = &self.landed
        call.flight.owner = <PyObject *>call
        c.on_done = land
        self.open[call] = future
        Py_INCREF(call)
        with nogil:
            fs_channel_start(self.c, c)
            due_us = fs_channel_due(self.c)
        self.deliver()
        self.arm(due_us)
        return future

    cdef int deliver(self) except -1:
        """Finished calls to their futures, in the order in which they finished."""
        cdef Flight *flight = self.landed
        cdef Flight *before = NULL
        cdef Flight *following
        cdef Call call
        self.landed = NULL
        while flight is not NULL:
            following = flight.next
            flight.next = before
            before = flight
            flight = following
        flight = before
        while flight is not NULL:
            following = flight.next
            call = <Call>flight.owner
            Py_DECREF(call)  # `call` has one, too
            future = self.open.pop(call, None)
            if future is not None and not future.done():
                try:
                    reply = self.reply_of(call)
                except Exception as error:
                    future.set_exception(error)
                else:
                    future.set_result(reply)
            flight = following
        return 0

    cdef int recall(self, Call call) except -1:
        """Gives a call up that nobody waits for any more."""
        cdef bint open
        cdef int64_t due_us
        if call not in self.open:
            return 0
        with nogil:
            open = fs_channel_cancel(self.c, &call.flight.call)
            due_us = fs_channel_due(self.c)
        if open:
            del self.open[call]
            Py_DECREF(call)
        self.deliver()
        self.arm(due_us)
        return 0

    async def unary_async(self, bytes path not None, bytes message not None, timeout, metadata, bint again=True):
        cdef Call call
        cdef Block reply
        self.check()
        call = self.new_call(path, message, timeout, metadata)
        call.flight.call.no_retry = not again
        try:
            reply = await self.send(call)
        except BaseException:
            self.recall(call)
            raise
        return PyBytes_FromStringAndSize(<const char *>reply.data, reply.len)

    async def predict_async(self, tuple spec not None, inputs, timeout, metadata, into):
        cdef Call call
        self.check()
        call = self.new_call(PREDICT, new_request(Spec(*spec), Inputs(self.memory, inputs), 0, -1), timeout, metadata)
        try:
            reply = await self.send(call)
        except BaseException:
            self.recall(call)
            raise
        return self.decode_reply(call, reply, into)

    async def predict_many_async(self, tuple spec not None, inputs, choose, timeout, metadata, into):
        cdef Call call
        cdef list calls, rows, futures = [], replies = []
        cdef int parallel, taken = 0
        self.check()
        calls, rows, parallel = self.chunks(spec, inputs, choose, timeout, metadata)
        try:
            for taken in range(len(calls)):
                while len(futures) < len(calls) and len(futures) < taken + parallel:
                    futures.append(self.send(calls[len(futures)]))
                replies.append(await futures[taken])
        except BaseException:
            for call in calls[:len(futures)]:
                self.recall(call)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # seen: one of them is being raised
            raise
        if len(calls) == 1 and rows[0] < 0:
            return self.decode_reply(calls[0], replies[0], into)
        return self.join_replies(replies, rows, into)

    # ---- the rest ------------------------------------------------------------------------------------------

    def update(self, list endpoints):
        """Replaces the endpoints: those that stay keep their connections."""
        cdef fs_endpoint *made
        cdef uint32_t n = len(endpoints)
        cdef int rc
        self.check()
        made = make_endpoints(endpoints)
        self.inside += 1
        try:
            with nogil:
                rc = fs_channel_update(self.c, made, n)
        finally:
            free(made)
            self.leave()
        if rc != 0:
            raise MemoryError
        self.names = [address[0] for address in endpoints]
        if self.loop is not None:
            self.drive()

    @property
    def endpoints(self) -> list:
        """Their names, in their order."""
        return list(self.names)

    def stats(self) -> dict:
        """Counters since the channel was made, and of each endpoint."""
        cdef fs_channel_stats total
        cdef uint32_t room = len(self.names) + 16, n
        cdef fs_endpoint_stats *rows
        self.check()
        rows = <fs_endpoint_stats *>calloc(room, sizeof(fs_endpoint_stats))
        if rows is NULL:
            raise MemoryError
        self.inside += 1
        try:
            with nogil:
                total = fs_channel_read(self.c)
                n = fs_channel_endpoints(self.c, rows, room)
            answer = dict(total)
            answer["endpoints"] = [
                {"address": name, **dict(rows[i])} for i, name in enumerate(self.names[:min(n, room)])
            ]
            return answer
        finally:
            free(rows)
            self.leave()

    def close(self):
        """Ends calls under way with CANCELLED, and the connections. Once is enough."""
        cdef Call call
        cdef bint open
        if self.closed:
            return
        if self.pid != getpid():
            self.closing = self.closed = True
            self.c = NULL  # the parent's
            return
        self.closing = True
        if self.loop is not None:
            self.loop.remove_reader(fs_channel_fd(self.c))
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            self.deliver()
            for call, future in list(self.open.items()):
                with nogil:
                    open = fs_channel_cancel(self.c, &call.flight.call)
                if open:
                    del self.open[call]
                    Py_DECREF(call)
                if not future.done():
                    future.set_exception(self.failure(CODE_CANCELLED, "the client was closed"))
            self.deliver()  # what one cancellation has ended besides
        while self.inside > 0:
            self.left.wait()
        if not self.closed:
            self.closed = True
            self.loop = None
            fs_channel_free(self.c)
            self.c = NULL


cdef int64_t us(seconds) except? -1:
    cdef double value = seconds
    if not 0 <= value < 1e12:
        raise ValueError(f"{seconds} is no time in seconds")
    return <int64_t>ceil(value * 1e6)
