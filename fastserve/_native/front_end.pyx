"""The front end on uvloop's thread: gRPC connections, and the calls that Python coroutines serve.

A connection is an asyncio.BufferedProtocol around a sans-I/O session (csrc/h2.h). Bytes go from the socket to
the session and Predict calls on to the engine without an object being made for them; finished calls come back
through the mailbox, whose eventfd the loop watches, and each connection is then written once.

With io_threads, connections live on epoll threads (csrc/io.h) instead, which never see the GIL; the calls that
Python serves come from there by mail, and their answers go back the same way. Connections with TLS always do:
without io_threads there is one thread for them alone.

Runs on the loop's thread, which owns everything here. Knows nothing of batches, models or protobuf.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport INT64_MAX, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy

from fastserve._native.c_engine cimport (
    FS_CALL_CLASSIFY,
    FS_CALL_MULTI_INFERENCE,
    FS_CALL_PREDICT,
    FS_CALL_REGRESS,
    FS_EVENT_CALL,
    FS_EVENT_CANCEL,
    FS_EVENT_HALF_CLOSE,
    FS_EVENT_MESSAGE,
    FS_EVENT_OPEN,
    FS_TRANSPORT_GRPC,
    FS_TRANSPORT_REST,
    FS_TRANSPORT_WEB,
    fs_budget_used,
    fs_call_kind,
    fs_catalog_sticky,
    fs_engine_join,
    fs_event,
    fs_front_add,
    fs_front_add_engine,
    fs_front_add_named_run,
    fs_front_admit,
    fs_front_answer,
    fs_front_consume,
    fs_front_ctx,
    fs_front_handler,
    fs_h2_active_calls,
    fs_h2_done,
    fs_h2_free,
    fs_h2_new,
    fs_h2_recv,
    fs_h2_send,
    fs_h2_shutdown,
    fs_h2_shutdown_notice,
    fs_h2_tick,
    fs_h2_unsent_bytes,
    fs_inflate,
    fs_mail,
    fs_mailbox_close,
    fs_mailbox_open,
    fs_now_us,
    fs_owner_deliver,
    fs_owner_post,
    fs_refusal,
    fs_refusals_add,
    fs_refusals_read,
    fs_resolve,
    fs_slab_alloc,
    fs_slab_free,
    fs_slab_read,
    fs_slab_trim,
    int64_t,
    size_t,
    sockaddr,
    uint8_t,
    uint64_t,
)
from fastserve._native.c_io cimport (
    FS_IO_CLOSE,
    FS_IO_NOTICE,
    FS_IO_SHUTDOWN,
    fs_io_adopt,
    fs_io_config,
    fs_io_drain,
    fs_io_drain_step,
    fs_io_free,
    fs_io_mailbox,
    fs_io_new,
    fs_io_read,
    fs_io_slab,
    fs_io_start,
    fs_io_stop,
    fs_io_touch,
)
from fastserve._native.c_trace cimport (
    FS_TRACE_RECORDING,
    FS_TURN_DELIVER,
    FS_TURN_READ,
    fs_trace_track,
    fs_track_turn,
    fs_track_wants,
)
from fastserve._native.c_channel cimport fs_tls_context
from fastserve._native.c_predict cimport fs_model_ref
from fastserve._native.c_runtime cimport fs_error, fs_slab_new, fs_slab_release, fs_slice
from fastserve._native.engine cimport Engine
from fastserve._native.runtime cimport check
from fastserve._native.tls cimport ServerTls


cdef extern from "<malloc.h>" nogil:
    enum:
        M_MMAP_THRESHOLD
        M_TRIM_THRESHOLD
    int mallopt(int parameter, int value)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t len, int flags)


cdef enum:
    RECEIVE_BYTES = 256 << 10
    SEND_BYTES = 256 << 10
    SLAB_CACHE_BYTES = 64 << 20
    PREFIX = 5
    PAUSE_BYTES = 1 << 20      # with the socket full and this much more to send, no more requests are read
    LINGER_US = 1000000        # how long a peer has to hang up after us
    TRIM_US = 2000000          # how often memory is given back
    KEEP_BYTES = 4 << 20       # of free blocks, which are kept whether they are needed or not
    LARGE_BYTES = 1 << 20      # allocations from this size on go back to the system when they are freed

cdef double TICK_S = 0.5  # how late a time-out may be noticed

SESSION_RUN = b"/tensorflow.serving.SessionService/SessionRun"
PREDICTION_SERVICE = b"/tensorflow.serving.PredictionService/"

# What the engine serves.
cdef dict ENGINE = {
    b"Predict": FS_CALL_PREDICT,
    b"Classify": FS_CALL_CLASSIFY,
    b"Regress": FS_CALL_REGRESS,
    b"MultiInference": FS_CALL_MULTI_INFERENCE,
}


# How a listener's `transport` is called in `configure`.
TRANSPORTS = {"grpc": FS_TRANSPORT_GRPC, "rest": FS_TRANSPORT_REST, "web": FS_TRANSPORT_WEB}


cdef int door_of(bint admin, str transport) except -1:
    """Which of Doors.ctx a listener is. ValueError when there is no such transport."""
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r}: one of {', '.join(TRANSPORTS)}")
    return 2 * <int>TRANSPORTS[transport] + admin


cdef void make_doors(Doors *doors, fs_front *front, fs_owner *owner) noexcept nogil:
    """As door_of counts them."""
    cdef int i
    for i in range(DOORS):
        doors.ctx[i].front = front
        doors.ctx[i].owner = owner
        doors.ctx[i].admin = i % 2
        doors.ctx[i].transport = <uint8_t>(i // 2)


def give_large_blocks_back() -> None:
    """Tells malloc, for the whole process, to return large blocks to the system. Without it, the first of
    them that is freed raises the size from which it would."""
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)


cdef void touch(void *ctx, void *conn) noexcept nogil:
    """A finished call submitted something: csrc/owner.h's hook, inside fs_owner_deliver."""
    cdef Touched *touched = <Touched *>ctx
    cdef Link *link = <Link *>conn
    if not link.touched:
        link.touched = True
        link.next = touched.first
        touched.first = link


cdef void unlink(Touched *touched, Link *link) noexcept nogil:
    cdef Link **at = &touched.first
    while at[0] is not link:
        at = &at[0].next
    at[0] = link.next
    link.touched = False


cdef void on_event(fs_mail *mail) noexcept with gil:
    """A control-plane call has news: csrc/front.h's hook, inside fs_owner_deliver."""
    cdef fs_event *event = <fs_event *>mail
    try:
        (<FrontEnd>(<Touched *>event.front.loop.ctx).front).control(event)
    finally:
        fs_slab_free(event)


cdef void on_io_mail(void *ctx) noexcept nogil:
    """An epoll thread has mail: csrc/io.h's hook, on that thread."""
    fs_owner_deliver((<fs_front_ctx *>ctx).owner)


cdef void on_io_empty(void *ctx) noexcept nogil:
    """An epoll thread is drained: likewise."""
    cdef IoThread *thread = <IoThread *>ctx
    fs_owner_post(thread.doors.ctx[0].front.loop, &thread.empty.mail)


cdef void on_io_refused(void *ctx, const sockaddr *peer, const char *why) noexcept nogil:
    """A handshake on an epoll thread has failed: likewise."""
    cdef IoThread *thread = <IoThread *>ctx
    fs_refusals_add(thread.refusals, thread.owner.slab, peer, why)


cdef void deliver_refusal(fs_mail *mail) noexcept with gil:
    """What on_io_refused has mailed to the loop."""
    cdef fs_refusal *refusal = <fs_refusal *>mail
    front = <FrontEnd>refusal.refusals.ctx
    try:
        if front.on_refused is not None:
            front.on_refused(refusal.n, refusal.peer.decode(), refusal.why.decode("utf-8", "replace"))
    finally:
        fs_slab_free(refusal)


cdef void deliver_empty(fs_mail *mail) noexcept with gil:
    """What on_io_empty has mailed to the loop."""
    front = <FrontEnd>(<Empty *>mail).front
    front.empty_threads += 1
    front.one_left()


@cython.no_gc
cdef class Rpc:
    """One call that Python serves. Ends with finish(); until then the native call stays."""

    def send(self, bytes message not None) -> None:
        """One message of a streaming reply. Dropped when the caller is gone."""
        if self.c is not NULL:
            self.front.answer(self, message, False, 0, b"")

    def consumed(self) -> None:
        """The oldest message that the receiver got, and that this was not said of, is done with. Until then it
        counts as in flight."""
        cdef size_t length = self.lengths.pop(0)
        if self.c is not NULL:
            fs_front_consume(&self.front.owner, self.owner, self.c, length)

    def finish(self, int code, str text="", message: bytes | None = None) -> None:
        """Ends the call with a gRPC status, and for a unary call that is OK with its reply. Once."""
        if self.refused:
            return
        if self.c is NULL:
            raise RuntimeError(f"{self.path} is finished already")
        self.front.answer(self, message, True, code, text.encode("utf-8", "replace"))

    def resolve(self, bytes spec not None) -> tuple[str, int]:
        """The model and version that `spec`, a serialized ModelSpec, means for this caller. RuntimeFailure with
        TensorFlow Serving's code and words when there is none."""
        cdef fs_slice data
        cdef fs_model_ref model
        cdef fs_error err
        data.data = <const uint8_t *><const char *>spec
        data.len = <size_t>len(spec)
        check(fs_resolve(&self.front.owner, self.c, data, &model, &err), &err)
        return (<const char *>model.name.data)[:model.name.len].decode(), model.version

    def admit(self, str model) -> None:
        """Whether its caller may use `model`: raises RuntimeFailure, UNAUTHENTICATED or PERMISSION_DENIED, when
        not. Nothing once the call is over."""
        cdef bytes name = model.encode("utf-8", "surrogatepass")
        cdef fs_slice slice
        cdef fs_error err
        if self.c is not NULL:
            slice.data = <const uint8_t *><const char *>name
            slice.len = <size_t>len(name)
            check(fs_front_admit(&self.front.owner, self.c, slice, &err), &err)

    @property
    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None: there is none, or the call is over."""
        if self.c is NULL or self.c.deadline_us == INT64_MAX:
            return None
        return (self.c.deadline_us - fs_now_us()) / 1e6


@cython.no_gc
cdef class FrontEnd:
    """The loop's connections, their shared buffers, and the way back for finished calls.

    `methods` maps paths to whether they stream, and to the most bytes that a message of theirs may have; Python
    serves them through `on_call(rpc)`. What the engine serves needs no entry. With `io_threads`, that many epoll threads drive the connections, which `adopt` gives them; those
    with TLS are driven by epoll threads in any case. `tls`: {"handshake_timeout_s": ...} when there will be some, or
    None. `on_refused` gets the number of handshakes that have failed, a peer and a reason, of the 1st, 2nd, 4th...
    Raises MemoryError.
    """

    def __init__(self, loop, Engine engine not None, dict limits, dict methods, on_call, int io_threads=0,
                 dict tls=None, on_refused=None):
        self.loop = loop
        self.engine = engine
        self.on_call = on_call
        self.touched.front = <void *>self
        self.connections = set()
        self.rpcs = {}
        self.paths = [*(PREDICTION_SERVICE + name for name in ENGINE), *(path.encode() for path in methods)]
        self.limits.max_concurrent_streams = limits["max_concurrent_streams"]
        self.limits.max_header_bytes = limits["max_header_bytes"]
        self.limits.max_message_bytes = limits["max_message_bytes"]
        self.limits.max_conn_bytes = limits["max_connection_bytes"]
        self.limits.window_bytes = 4 << 20
        self.limits.reset_burst = limits["reset_burst"]
        self.limits.reset_per_s = limits["reset_per_s"]
        self.limits.chatter_burst = 2 * limits["reset_burst"]
        self.limits.chatter_per_s = 2 * limits["reset_per_s"]
        self.limits.request_timeout_us = <int64_t>(limits["request_timeout_s"] * 1e6)
        self.limits.stall_timeout_us = <int64_t>(limits["stall_timeout_s"] * 1e6)
        self.limits.keepalive_us = <int64_t>(limits["keepalive_s"] * 1e6)
        self.limits.keepalive_timeout_us = <int64_t>(limits["keepalive_timeout_s"] * 1e6)
        self.limits.sticky = fs_catalog_sticky(engine.c.catalog)
        self.limits.trace = engine.trace
        self.budget.limit = limits["max_total_bytes"]

        self.box.fd = -1
        self.slab = fs_slab_new(SLAB_CACHE_BYTES)
        self.receive = <uint8_t *>PyMem_Malloc(RECEIVE_BYTES)
        self.sending = <uint8_t *>PyMem_Malloc(SEND_BYTES)
        if self.slab is NULL or self.receive is NULL or self.sending is NULL:
            raise MemoryError
        if fs_mailbox_open(&self.box) != 0:
            raise MemoryError("no descriptor for an eventfd")
        if fs_engine_join(engine.c, &self.owner, &self.box, self.slab, touch, &self.touched) != 0:
            raise MemoryError("too many threads own connections")
        engine.home = &self.owner
        self.owner.track = fs_trace_track(engine.trace, b"loop")
        self.receive_view = PyMemoryView_FromMemory(<char *>self.receive, RECEIVE_BYTES, 0x200)

        self.front.loop = &self.owner
        self.front.on_event = on_event
        cdef int rc = 0
        for path, kind in zip(self.paths, ENGINE.values()):
            rc |= fs_front_add_engine(&self.front, <const char *>path, <fs_call_kind><int>kind)
        for path, (streaming, _) in zip(self.paths[len(ENGINE):], methods.values()):
            rc |= fs_front_add(&self.front, <const char *>path, streaming)
        self.max_bytes = [0] * len(ENGINE) + [max_bytes for _, max_bytes in methods.values()]
        if engine.session_run:
            self.paths.append(SESSION_RUN)
            rc |= fs_front_add_named_run(&self.front, <const char *>self.paths[-1])
        if rc != 0:
            raise ValueError(f"too many methods: {len(self.paths)}")
        make_doors(&self.doors, &self.front, &self.owner)
        self.on_refused = on_refused
        self.refusals.loop = &self.owner
        self.refusals.tell = deliver_refusal
        self.refusals.ctx = <void *>self
        self.io_threads = io_threads
        if tls is None:
            self.start_threads(io_threads, 0.0)
        else:
            self.start_threads(io_threads or 1, tls["handshake_timeout_s"])
        loop.add_reader(self.box.fd, self.on_mail)

    cdef int start_threads(self, int n, double handshake_timeout_s) except -1:
        cdef IoThread *thread
        cdef fs_io_config config
        cdef bytes name
        self.threads = <IoThread *>calloc(<size_t>n + 1, sizeof(IoThread))
        if self.threads is NULL:
            raise MemoryError
        memset(&config, 0, sizeof(config))
        config.limits = &self.limits
        config.handler = &fs_front_handler
        config.budget = &self.budget
        config.on_mail = on_io_mail
        config.on_empty = on_io_empty
        config.on_refused = on_io_refused
        config.handshake_timeout_us = <int64_t>(handshake_timeout_s * 1e6)
        config.slab_cache_bytes = SLAB_CACHE_BYTES
        while self.n_threads < n:
            thread = &self.threads[self.n_threads]
            name = b"fs-io-%d" % self.n_threads
            strncpy(config.name, <const char *>name, sizeof(config.name) - 1)
            config.track = fs_trace_track(self.engine.trace, <const char *>name)
            thread.io = fs_io_new(&config)
            if thread.io is NULL:
                raise MemoryError("no memory or descriptors for an I/O thread")
            self.n_threads += 1  # from here on __dealloc__ sees it
            make_doors(&thread.doors, &self.front, &thread.owner)
            thread.refusals = &self.refusals
            thread.empty.mail.deliver = deliver_empty
            thread.empty.front = <void *>self
            if fs_engine_join(self.engine.c, &thread.owner, fs_io_mailbox(thread.io), fs_io_slab(thread.io),
                              fs_io_touch, thread.io) != 0:
                raise MemoryError("too many I/O threads")
            thread.owner.track = config.track
            if fs_io_start(thread.io, &thread.doors.ctx[0]) != 0:
                raise MemoryError("too many I/O threads")
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.n_threads):
            fs_io_stop(self.threads[i].io)
            if self.threads[i].owner.box is not NULL:
                fs_owner_deliver(&self.threads[i].owner)
            fs_io_free(self.threads[i].io)
        free(self.threads)
        fs_mailbox_close(&self.box)
        PyMem_Free(self.receive)
        PyMem_Free(self.sending)
        fs_slab_release(self.slab)

    def stop(self) -> None:
        """Ends the epoll threads, which closes their connections, and listens to no mailbox any more. Calls that
        are still away are never answered; the front end itself must outlive them."""
        cdef int i
        for i in range(self.n_threads):
            fs_io_stop(self.threads[i].io)
        if self.ticker is not None:
            self.ticker.cancel()
        self.loop.remove_reader(self.box.fd)

    def speak(self, ServerTls tls) -> None:
        """What connections with TLS speak that are adopted from now on."""
        self.tls = tls

    def adopt(self, int fd, bint tls=False, bint admin=False, str transport="grpc") -> None:
        """Gives a connected socket to the epoll thread whose turn it is. `admin`: it came to the admin address.
        `transport`: as in fs_transport. Raises MemoryError; the socket is still the caller's then."""
        cdef IoThread *thread = &self.threads[self.turn]
        cdef fs_tls_context *context = NULL
        cdef int door = door_of(admin, transport)
        if tls:
            if self.tls is None:
                raise RuntimeError("there is no certificate to show")
            context = self.tls.c
        if fs_io_adopt(thread.io, fd, context, &thread.doors.ctx[door]) != 0:
            raise MemoryError
        self.adopted += 1
        self.turn = (self.turn + 1) % self.n_threads

    def connection_count(self) -> int:
        """Connections there are, those on the epoll threads included."""
        cdef uint64_t n = self.adopted
        cdef int i
        for i in range(self.n_threads):
            n -= fs_io_read(self.threads[i].io).closed
        return len(self.connections) + n

    def on_mail(self) -> None:
        """The eventfd is readable."""
        self.deliver()

    cdef void deliver(self):
        cdef Link *link
        cdef int64_t now_us
        cdef int64_t began_us = fs_now_us() if fs_track_wants(self.owner.track, FS_TRACE_RECORDING) else 0
        fs_owner_deliver(&self.owner)
        if self.touched.first is not NULL:
            now_us = fs_now_us()
            while self.touched.first is not NULL:
                link = self.touched.first
                self.touched.first = link.next
                link.touched = False
                (<Connection>link.connection).flush(now_us)
        if began_us != 0:
            fs_track_turn(self.owner.track, FS_TURN_DELIVER, began_us, 0)

    def tick(self) -> None:
        """Every connection's time-outs, and memory given back. Runs while there is anything to do."""
        cdef Connection connection
        cdef int64_t now_us = fs_now_us()
        for connection in list(self.connections):
            if connection.due_us <= now_us:
                connection.tick(now_us)
        if now_us - self.trimmed_us >= TRIM_US:
            self.trimmed_us = now_us
            fs_slab_trim(self.slab, KEEP_BYTES)
        self.ticker = None
        if self.connections or fs_slab_read(self.slab).cached_bytes > KEEP_BYTES:
            self.ticker = self.loop.call_later(TICK_S, self.tick)

    # ---- calls that Python serves ----

    cdef void control(self, fs_event *event):
        cdef Rpc rpc
        cdef uintptr_t key = <uintptr_t>event.rpc
        if event.kind == FS_EVENT_CALL or event.kind == FS_EVENT_OPEN:
            rpc = Rpc.__new__(Rpc)
            rpc.front = self
            rpc.c = event.rpc
            rpc.owner = event.owner
            rpc.path = (<bytes>self.paths[event.method]).decode()
            rpc.streaming = event.kind == FS_EVENT_OPEN
            rpc.admin = event.admin
            rpc.lengths = []
            self.rpcs[key] = rpc
            if event.kind == FS_EVENT_CALL:
                rpc.message = self.message_of(
                    rpc, event.rpc.message, event.rpc.message_len, event.rpc.encoding,
                    self.max_bytes[event.method]
                )
                if rpc.message is None:
                    return
            self.on_call(rpc)
            return
        rpc = self.rpcs.get(key)
        message = None
        if event.kind == FS_EVENT_MESSAGE:
            if rpc is not None:
                message = self.message_of(
                    rpc, event.data, event.len, event.rpc.encoding if event.compressed else 0,
                    self.max_bytes[event.method]
                )
                rpc.lengths.append(event.len)
            fs_slab_free(event.data)
            if message is None:
                if rpc is not None and rpc.on_cancel is not None:
                    rpc.on_cancel()
                return
        if rpc is None:
            return  # finished here before this came
        if event.kind == FS_EVENT_CANCEL:
            rpc.cancelled = True
            if rpc.on_cancel is not None:
                rpc.on_cancel()
        elif rpc.receiver is not None:
            rpc.receiver(message)

    cdef bytes message_of(self, Rpc rpc, const uint8_t *data, size_t len, int encoding, size_t max_bytes):
        """The message inflated, or None when that fails or it is too large: the call is refused then."""
        cdef uint8_t *inflated
        cdef size_t inflated_len
        cdef fs_error err
        if len > max_bytes:
            rpc.finish(8, f"a message has at most {max_bytes} bytes here, this one has {len}")  # RESOURCE_EXHAUSTED
            rpc.refused = True
            return None
        if encoding == 0:
            return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>len)
        if fs_inflate(self.slab, encoding, data, len, max_bytes, &inflated, &inflated_len, &err) != 0:
            rpc.finish(err.code, err.msg[:err.len].decode("utf-8", "replace"))
            rpc.refused = True
            return None
        try:
            return PyBytes_FromStringAndSize(<const char *>inflated, <Py_ssize_t>inflated_len)
        finally:
            fs_slab_free(inflated)

    cdef answer(self, Rpc rpc, bytes message, bint finish, int code, bytes text):
        cdef uint8_t *frame = NULL
        cdef size_t size = 0
        cdef fs_rpc *c = rpc.c
        if message is not None and code == 0:
            size = <size_t>len(message)
            frame = <uint8_t *>fs_slab_alloc(self.slab, size + PREFIX)
            if frame is NULL:
                raise MemoryError
            frame[0] = 0
            frame[1] = <uint8_t>(size >> 24)
            frame[2] = <uint8_t>(size >> 16)
            frame[3] = <uint8_t>(size >> 8)
            frame[4] = <uint8_t>size
            memcpy(frame + PREFIX, <const char *>message, size)
            size += PREFIX
        if finish:
            rpc.c = NULL
            self.rpcs.pop(<uintptr_t>c, None)
        if fs_front_answer(
            &self.owner, rpc.owner, c, frame, size, finish, code, text, <size_t>len(text)
        ) != 0:
            fs_slab_free(frame)
            raise MemoryError

    # ---- draining ----

    def shutdown_notice(self) -> None:
        """First step of a drain: every peer is told, calls on their way in are still taken."""
        self.drain(FS_IO_NOTICE)

    def shutdown(self) -> None:
        """Second step: no new calls; connections close as they run empty. None is adopted any more."""
        self.drain(FS_IO_SHUTDOWN)

    def abort(self) -> None:
        """Closes what is left."""
        self.drain(FS_IO_CLOSE)

    cdef int drain(self, fs_io_drain_step step) except -1:
        cdef Connection connection
        cdef int i
        self.step = step
        for connection in list(self.connections):
            connection.drain(step)
        for i in range(self.n_threads):
            if fs_io_drain(self.threads[i].io, step) != 0:
                raise MemoryError
        return 0

    async def all_closed(self) -> None:
        """Returns when no connection is left, after `shutdown`."""
        while self.connections or self.empty_threads < self.n_threads:
            self.left = self.loop.create_future()
            await self.left

    cdef void one_left(self):
        if self.left is not None and not self.left.done():
            self.left.set_result(None)

    # ---- figures ----

    def active_calls(self) -> int:
        """Calls that are not answered yet, on every connection."""
        cdef Connection connection
        cdef uint64_t n = 0
        cdef int i
        for connection in self.connections:
            if connection.h2 is not NULL:
                n += fs_h2_active_calls(connection.h2)
        for i in range(self.n_threads):
            n += fs_io_read(self.threads[i].io).calls
        return n

    def system_allocs(self) -> int:
        """Times the threads that own connections asked the system for memory; flat in steady state."""
        cdef uint64_t n = fs_slab_read(self.slab).system_allocs
        cdef int i
        for i in range(self.n_threads):
            n += fs_slab_read(fs_io_slab(self.threads[i].io)).system_allocs
        return n

    def handshakes_refused(self) -> int:
        """TLS handshakes that have failed."""
        return fs_refusals_read(&self.refusals)

    def bytes_in_flight(self) -> int:
        """Requests being received or served and replies not sent yet, of all connections."""
        return fs_budget_used(&self.budget)


@cython.no_gc
cdef class Connection:
    """asyncio.BufferedProtocol for one client. See the module; csrc/conn.c is the same for epoll."""

    def __init__(self, FrontEnd front not None, bint admin=False, str transport="grpc"):
        self.front = front
        self.door = door_of(admin, transport)
        self.fd = -1
        self.link.connection = <void *>self

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.fd = transport.get_extra_info("socket").fileno()
        transport.set_write_buffer_limits(high=0)  # pause_writing as soon as anything is left over
        self.h2 = fs_h2_new(&self.front.limits, &fs_front_handler,
                            &self.front.doors.ctx[self.door], &self.link, &self.front.budget, self.front.slab, fs_now_us())
        if self.h2 is NULL:
            transport.abort()
            return
        self.front.connections.add(self)
        if self.front.ticker is None:
            self.front.ticker = self.front.loop.call_later(TICK_S, self.front.tick)
        self.drain(self.front.step)
        self.flush(fs_now_us())

    def get_buffer(self, sizehint):
        return self.front.receive_view

    def buffer_updated(self, size_t nbytes) -> None:
        cdef int64_t now_us
        if self.h2 is NULL or self.state != OPEN:
            return  # only the end is waited for
        now_us = fs_now_us()
        if fs_h2_recv(self.h2, self.front.receive, nbytes, now_us) != 0:
            self.state = ENDING
        self.flush(now_us)
        fs_track_turn(self.front.owner.track, FS_TURN_READ, now_us, <int64_t>nbytes)

    def eof_received(self) -> None:
        return None  # the transport closes; calls in flight are cancelled in connection_lost

    def connection_lost(self, exc) -> None:
        cdef fs_h2 *h2 = self.h2
        self.h2 = NULL
        self.state = GONE
        self.transport = None
        if self.lingering is not None:
            self.lingering.cancel()
            self.lingering = None
        self.front.connections.discard(self)
        self.front.one_left()
        if h2 is not NULL:
            fs_h2_free(h2)
            if self.link.touched:
                unlink(&self.front.touched, &self.link)

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self.flush(fs_now_us())

    cdef void drain(self, fs_io_drain_step step):
        """Does a step of a drain; 0: none has begun."""
        if self.h2 is NULL or step == 0:
            return
        if step == FS_IO_CLOSE:
            self.abort()
            return
        if step == FS_IO_NOTICE:
            fs_h2_shutdown_notice(self.h2)
        else:
            fs_h2_shutdown(self.h2)
        self.flush(fs_now_us())

    cdef void flush(self, int64_t now_us):
        """Writes what the session has, straight to the socket; the transport gets what that does not take."""
        cdef size_t n
        cdef ssize_t sent
        self.due_us = 0
        while self.state < LINGERING and not self.blocked and self.h2 is not NULL:
            n = fs_h2_send(self.h2, self.front.sending, SEND_BYTES, now_us)
            if n == 0:
                if self.state == ENDING or fs_h2_done(self.h2):
                    self.linger()
                break
            while True:
                sent = send(self.fd, self.front.sending, n, MSG_DONTWAIT | MSG_NOSIGNAL)
                if sent >= 0 or errno != EINTR:
                    break
            if sent < 0:
                if errno != EAGAIN and errno != ENOBUFS:
                    self.abort()
                    return
                sent = 0
            if <size_t>sent < n:
                self.keep_rest(self.front.sending + sent, n - <size_t>sent, now_us)
        if self.blocked or self.deaf:
            self.listen()

    cdef void keep_rest(self, const uint8_t *data, size_t len, int64_t now_us):
        try:
            self.transport.write(PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>len))
            # It tries once more. If anything is left even then, it has called pause_writing and will call
            # resume_writing; otherwise neither.
            self.left_bytes = self.transport.get_write_buffer_size()
        except MemoryError:
            self.abort()  # a hole in the stream cannot be mended
            return
        self.blocked = self.left_bytes > 0
        self.full_us = now_us

    cdef void listen(self):
        """Stops reading, or goes on, as fits what waits to be sent."""
        cdef bint deaf = False
        if self.blocked and self.state < LINGERING:
            deaf = fs_h2_unsent_bytes(self.h2) >= PAUSE_BYTES
        if deaf == self.deaf or self.transport is None:
            return
        self.deaf = deaf
        if deaf:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    cdef void linger(self):
        self.state = LINGERING
        self.transport.write_eof()
        self.lingering = self.front.loop.call_later(LINGER_US / 1e6, self.transport.abort)

    cdef void tick(self, int64_t now_us):
        """Time-outs."""
        cdef int64_t due_us = INT64_MAX
        cdef int64_t patience_us, session_due_us
        cdef size_t left_bytes
        if self.h2 is NULL or self.state >= LINGERING:
            self.due_us = due_us
            return
        if self.blocked:
            # The session does not see a full socket when all that it had is in the transport.
            left_bytes = self.transport.get_write_buffer_size()
            if left_bytes != self.left_bytes:
                self.left_bytes = left_bytes
                self.full_us = now_us
            patience_us = self.front.limits.stall_timeout_us if self.state == OPEN else LINGER_US
            if 0 < patience_us <= now_us - self.full_us:
                self.abort()
                return
            due_us = 0  # its progress is looked at
        if self.state == OPEN:
            session_due_us = fs_h2_tick(self.h2, now_us)
            if session_due_us < 0:
                self.state = ENDING
                due_us = 0
            elif session_due_us < due_us:
                due_us = session_due_us
        self.flush(now_us)
        self.due_us = due_us if not self.blocked else 0

    cdef void abort(self):
        self.state = GONE
        self.transport.abort()
