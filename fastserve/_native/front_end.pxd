# The front end on the loop's thread: connections, and calls that Python serves.
from fastserve._native.c_engine cimport (
    fs_budget,
    fs_event,
    fs_front,
    fs_front_ctx,
    fs_h2,
    fs_h2_limits,
    fs_mail,
    fs_mailbox,
    fs_owner,
    fs_refusals,
    fs_rpc,
    int64_t,
    uint8_t,
    uint64_t,
)
from fastserve._native.c_io cimport fs_io, fs_io_drain_step
from fastserve._native.c_runtime cimport fs_slab
from fastserve._native.engine cimport Engine
from fastserve._native.tls cimport ServerTls


# A connection that this round of mail has submitted something to: what touch() may know without the GIL.
cdef struct Link:
    Link *next
    bint touched
    void *connection


cdef struct Touched:
    Link *first
    void *front


# An epoll thread's last word: mail to the loop, once.
cdef struct Empty:
    fs_mail mail  # first
    void *front


cdef enum:
    DOORS = 6  # two for each fs_transport: the usual one, and the one for the admin address


# What sessions' handler gets, by the kind of listener that their connections came to.
cdef struct Doors:
    fs_front_ctx ctx[DOORS]


# A thread on epoll that owns connections in place of the loop.
cdef struct IoThread:
    Doors doors  # first: its hooks get the first of them
    fs_refusals *refusals
    fs_io *io
    fs_owner owner
    Empty empty


cdef class Rpc


cdef class FrontEnd:
    cdef readonly Engine engine
    cdef object loop
    cdef object on_call        # Python: called with each new Rpc
    cdef fs_owner owner
    cdef fs_mailbox box
    cdef fs_slab *slab
    cdef fs_budget budget
    cdef fs_h2_limits limits
    cdef fs_front front
    cdef Doors doors
    cdef fs_refusals refusals  # handshakes
    cdef object on_refused     # Python: called with some of them
    cdef readonly ServerTls tls  # what new connections speak, None: nothing yet
    cdef uint8_t *receive      # one buffer for every connection: filled and used up in one step
    cdef object receive_view
    cdef uint8_t *sending      # likewise
    cdef Touched touched
    cdef set connections       # those that the loop drives
    cdef IoThread *threads     # on which the others are
    cdef int n_threads
    cdef readonly int io_threads  # of these that take plain connections, too: all, or none
    cdef int turn              # of the thread that gets the next connection
    cdef uint64_t adopted      # connections that the threads were given, in all
    cdef int empty_threads     # that have said so
    cdef fs_io_drain_step step # how far a drain is
    cdef dict rpcs             # address of an fs_rpc -> Rpc
    cdef list paths            # bytes that the methods point to
    cdef list max_bytes        # of a message, by method; 0 for what the engine serves
    cdef object ticker         # None: there is nothing to look after
    cdef int64_t trimmed_us    # when memory was last given back
    cdef object left           # a future for the next connection or thread that ends, if somebody waits

    cdef int start_threads(self, int n, double handshake_timeout_s) except -1
    cdef void deliver(self)
    cdef void control(self, fs_event *event)
    cdef bytes message_of(self, Rpc rpc, const uint8_t *data, size_t len, int encoding, size_t max_bytes)
    cdef answer(self, Rpc rpc, bytes message, bint finish, int code, bytes text)
    cdef int drain(self, fs_io_drain_step step) except -1
    cdef void one_left(self)


cdef enum State:
    OPEN
    ENDING     # the session is over; what it still says is being sent
    LINGERING  # all is said and our side is shut: closing now could make the kernel throw away, by a RST,
               # what the peer has not read yet, so first it has time to hang up itself
    GONE       # nothing is sent any more; connection_lost is due


cdef class Connection:
    cdef FrontEnd front
    cdef fs_h2 *h2             # NULL: not connected
    cdef int door              # which of the front end's `doors` it came through
    cdef int fd
    cdef object transport
    cdef State state
    cdef bint blocked          # the transport holds bytes that the socket did not take: ours must wait
    cdef bint deaf             # and nothing is read meanwhile
    cdef size_t left_bytes     # how much of them there were at the last look,
    cdef int64_t full_us       #   and since when
    cdef int64_t due_us        # when tick() has something to do; 0: it should look
    cdef object lingering      # the timer of that state
    cdef Link link
    cdef object __weakref__

    cdef void drain(self, fs_io_drain_step step)
    cdef void flush(self, int64_t now_us)
    cdef void keep_rest(self, const uint8_t *data, size_t len, int64_t now_us)
    cdef void listen(self)
    cdef void linger(self)
    cdef void tick(self, int64_t now_us)
    cdef void abort(self)


cdef class Rpc:
    cdef FrontEnd front
    cdef fs_rpc *c             # NULL: finished
    cdef fs_owner *owner
    cdef readonly str path
    cdef readonly bint streaming
    cdef readonly bint cancelled
    cdef readonly bint admin   # it came to the admin address
    cdef bint refused          # by the front end: the coroutine need not finish it
    cdef readonly bytes message
    cdef list lengths          # streaming: of messages handed over and not consumed, as they travelled
    cdef public object receiver # streaming: called with each message, None at the end
    cdef public object on_cancel
