"""The configuration: what config.toml may say, with defaults. Values only; read by config_read.

Table and key names are the file's. Units are in the names; `_bytes` also takes strings such as "64MiB".
The descriptions in the types are what an error says would be right.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from fastserve.cgroup import available_cpus

MIB = 1 << 20

Count = Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number, 0 or more")]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000, description="a whole number, 1 or more")]
Rows = Annotated[int, Meta(ge=1, le=1_000_000, description="a number of rows, 1 to 1000000")]
Threads = Annotated[int, Meta(ge=1, le=1024, description="a number of threads, 1 to 1024")]
Seconds = Annotated[float, Meta(ge=0, le=1e9, description="a number of seconds, 0 or more")]
PositiveSeconds = Annotated[float, Meta(gt=0, le=1e9, description="a number of seconds, more than 0")]
Microseconds = Annotated[
    int, Meta(ge=0, le=1_000_000_000, description="a whole number of microseconds, 0 or more")
]
Size = Annotated[
    int, Meta(ge=1024, description='a number of bytes, 1024 or more, or a string such as "64MiB"')
]
MessageSize = Annotated[
    int,
    Meta(ge=1024, le=(1 << 31) - 1, description='1024 to 2147483647 bytes, or a string such as "64MiB"'),
]
MemorySize = Annotated[
    int, Meta(ge=0, description='a number of bytes, 0 or more, or a string such as "8GiB"')
]
SocketMode = Annotated[int, Meta(ge=0o001, le=0o777, description="a file mode, such as 0o660")]
Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]


class ServerTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server.tls]: TLS on the addresses of [server]. Files are PEM, and read again when they change."""

    # Our chain, leaf first, and its key, without a passphrase. With both there is TLS, with neither none.
    certificate: str = ""
    key: str = ""
    # Whoever signs clients' certificates. With it, only clients that show one are let in.
    client_ca: str = ""
    # Unix sockets speak TLS as well; otherwise they stay plain.
    unix_sockets: bool = False
    # From the connection's first byte to the end of its handshake.
    handshake_timeout_s: PositiveSeconds = 10.0


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: where it listens and how it answers."""

    # "HOST:PORT", "[IPV6]:PORT" (port 0: any free one) or "unix:PATH".
    listen: tuple[Text, ...] = ("127.0.0.1:8500",)
    # C threads that drive the connections; 0: the core's event loop drives them.
    io_threads: Annotated[int, Meta(ge=0, le=256, description="a number of threads, 0 to 256")] = 0
    # On SIGTERM: new calls are still served for so long, then calls in flight have drain_timeout_s.
    lame_duck_s: Seconds = 0.0
    drain_timeout_s: Seconds = 30.0
    # "match": replies are compressed as the request was, when the client accepts that; "none": never.
    reply_compression: Literal["match", "none"] = "match"
    # Numbers in replies as tensor_content instead of typed fields.
    tensor_content_replies: bool = False
    # Tells clients which services there are and what their messages look like.
    reflection: bool = True
    # SessionService.SessionRun: any part of a model's graph, by the names of its tensors.
    session_run: bool = False
    # Answer a call only if the signature's method_name is of its kind, as TensorFlow Serving once did.
    check_method_names: bool = False
    # Prepared models, remembered choices and the admin socket; default: below $XDG_STATE_HOME/fastserve.
    state_dir: str = ""
    # Default: admin.sock in state_dir.
    admin_socket: str = ""
    # How often this file is looked at for changes; 0: only SIGHUP and `fastserve reload` read it again.
    config_poll_s: Seconds = 1.0
    # The core's malloc: the C library's, jemalloc where it is installed, or the path of a library to preload.
    allocator: Text = "system"
    tls: ServerTls = ServerTls()
    # Permissions of the unix sockets in `listen`: who may write to one may connect.
    socket_mode: SocketMode = 0o660
    # Whether HandleReloadConfigRequest is answered at all,
    reload_rpc: bool = True
    # and where: on this address only, which answers everything else, too; "": wherever calls are.
    admin_listen: str = ""
    # Directories and URLs below which the base_path of a request's models must be; none: anywhere.
    reload_roots: tuple[Text, ...] = ()


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: what one client, one connection and all of them together may take."""

    max_message_bytes: MessageSize = 256 * MIB
    max_compressed_bytes: MessageSize = 64 * MIB
    # Messages in flight (requests, replies, decompressed sizes): on one connection, and in all.
    max_connection_bytes: Size = 512 * MIB
    # Default: a quarter of the memory that this process may use.
    max_total_bytes: Size = 0
    max_connections: Positive = 10_000
    max_concurrent_streams: Positive = 1024
    max_header_bytes: Size = 16 * 1024
    # From a request's first byte to its last.
    request_timeout_s: PositiveSeconds = 60.0
    # Replies waiting while the peer takes nothing.
    stall_timeout_s: PositiveSeconds = 60.0
    # A PING after so long without a byte from the peer; 0: never.
    keepalive_s: Seconds = 300.0
    keepalive_timeout_s: PositiveSeconds = 20.0
    # Stream resets by the peer, at once and per second, beyond which it is cut off.
    reset_burst: Positive = 5000
    reset_per_s: Positive = 500


class Executor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[executor]: the native threads that run models."""

    # Default: the processors that affinity and the cgroup's quota leave, up to the 64 that can be told apart.
    threads: Annotated[int, Meta(ge=1, le=64, description="a number of threads, 1 to 64")] = field(
        default_factory=lambda: min(available_cpus(), 64)
    )
    # How long an idle executor spins before it sleeps: lower latency for a busy processor.
    spin_us: Annotated[int, Meta(ge=0, le=100_000, description="0 to 100000 microseconds")] = 0
    load_threads: Annotated[int, Meta(ge=1, le=16, description="a number of threads, 1 to 16")] = 1
    # Who decides what runs next and how many rows: "fair", or a plug-in of the group fastserve.batchers.
    policy: Text = "fair"


class Loading(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[loading]: how versions are found, tried, loaded and given up."""

    # How often sources look for versions; 0: once.
    poll_s: Seconds = 1.0
    # Versions from remote stores are kept here; default: models in [server] state_dir.
    cache_dir: str = ""
    # Attempts after the first that failed, and the wait before them, doubled each time.
    retries: Count = 5
    retry_s: Seconds = 1.0
    retry_max_s: Seconds = 60.0
    # How much trials and loader threads give way to others, as nice(1) counts it,
    nice: Annotated[int, Meta(ge=0, le=19, description="a nice value, 0 to 19")] = 19
    # and after how long a load goes on at normal priority.
    hurry_after_s: PositiveSeconds = 60.0
    # Memory that versions may fill, with what the core has already; default: the machine's or the cgroup's.
    memory_limit_bytes: MemorySize = 0
    # Labels may name versions that are not available (yet), as long as the label is new.
    labels_for_unavailable: bool = False


class Monitoring(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[monitoring]: health, metrics, status and a page, over HTTP/1.1, from the control process. Always on
    monitor.sock in state_dir, and wherever the gateway listens."""

    # Further addresses, as [server] listen has them. Whoever connects sees it all.
    listen: tuple[Text, ...] = ()
    # Where Prometheus finds the metrics.
    metrics_path: Text = "/monitoring/prometheus/metrics"
    # A page for people at /.
    page: bool = True


class TensorFlow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tensorflow]: the library and its settings, one set for all models."""

    # The directory of the `tensorflow` package; default: that of the one installed beside fastserve.
    library_dir: str = ""
    # Per run; the executors are what runs in parallel.
    intra_op_threads: Threads = 1
    inter_op_threads: Threads = 1
    # The least severe of TensorFlow's own messages that are shown.
    log_level: Literal["fatal", "error", "warning", "info"] = "fatal"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    # As in CUDA_VISIBLE_DEVICES: "0", "0,1".
    visible_devices: str = ""
    gpu_memory_fraction: (
        Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")] | None
    ) = None
    gpu_allow_growth: bool = True
    # Further settings of TensorFlow's sessions: a ConfigProto as text. What has a key here is not in there.
    session_config: str = ""
    # Keep what XLA has compiled, for the core and for later versions.
    xla_cache: bool = True
    # Shared libraries of custom ops, loaded in this order before any model.
    op_libraries: tuple[Text, ...] = ()


class LiteRT(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[litert]: the library that runs TFLite models, and its settings, one set for all of them."""

    # The directory of the `ai_edge_litert` package; default: that of the one installed beside fastserve.
    library_dir: str = ""
    # Of one run; the executors are what runs in parallel.
    run_threads: Threads = 1
    # Runs of one model at once, each with an interpreter of its own; 0: as many as [executor] threads.
    interpreters: Annotated[int, Meta(ge=0, le=64, description="a number of interpreters, 0 to 64")] = 0


class Tracing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tracing]: spans of requests, for a collector that speaks OpenTelemetry's OTLP over HTTP."""

    # Where they are sent: "http://collector:4318/v1/traces"; "": nowhere.
    otlp_endpoint: str = ""
    # Requests without a traceparent of their caller's: this share has spans.
    sample_ratio: Annotated[float, Meta(ge=0, le=1, description="a share, 0 to 1")] = 0.0
    # What this server is called there.
    service_name: Text = "fastserve"


class Batching(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.batching]: TensorFlow Serving's batching parameters, broadcast and refuse_larger."""

    max_batch_size: Rows = 512
    # How long a batch may wait to grow while an executor is idle.
    batch_timeout_us: Microseconds = 0
    # Rows waiting are bounded by this many times max_batch_size.
    max_enqueued_batches: Annotated[int, Meta(ge=1, le=100_000, description="1 to 100000")] = 10
    # Executors that may run this model at once; 0: all.
    num_batch_threads: Count = 0
    # Default: the powers of two up to the largest batch.
    allowed_batch_sizes: tuple[Rows, ...] = ()
    split_large_batches: bool = True
    # Largest batch that runs when requests are split; default: max_batch_size.
    max_execution_batch_size: Rows | None = None
    pad_variable_length_inputs: bool = False
    # Inputs that a request may send with one row, which stands for all of its rows.
    broadcast: tuple[Text, ...] = ()
    # Answer requests of more rows than max_batch_size, and what has no rows to batch, with INVALID_ARGUMENT.
    refuse_larger: bool = False
    # A file in a version's directory, BatchingParameters as text, which takes the place of all this where
    # it is there. TensorFlow Serving's is called "batching_params.pbtxt".
    version_file: str = ""

    @property
    def largest_batch(self) -> int:
        """The most rows that run at once."""
        return self.max_execution_batch_size or self.max_batch_size


class Warmup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.warmup]: runs before a version is published."""

    # Runs of each batch size.
    iterations: Annotated[int, Meta(ge=1, le=1000, description="1 to 1000 runs")] = 1
    # Run the requests in assets.extra/tf_serving_warmup_requests, where a version has them.
    records: bool = True


class Versions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.versions]: which versions are served, and how one takes another's place."""

    # The newest, every one, or those listed.
    policy: Literal["latest", "all", "specific"] = "latest"
    num_versions: Annotated[int, Meta(ge=1, le=1000, description="1 to 1000 versions")] = 1
    specific: tuple[Annotated[int, Meta(ge=0, description="a version's number")], ...] = ()
    # "availability" loads before it unloads, "resource" unloads first; or a plug-in of fastserve.policies.
    transition: Text = "availability"
    # A file in a version's directory that says it is complete; default: the model's own files do.
    complete_marker: str = ""


class Rollout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.rollout]: a new version proves itself on some of the traffic before it gets all."""

    # "canary" answers a share of the requests; "shadow" gets copies, whose answers are compared and dropped.
    mode: Literal["off", "canary", "shadow"] = "off"
    share: Annotated[float, Meta(gt=0, le=1, description="a share above 0, up to 1")] = 0.1
    # Requests with equal values of this header get the same version.
    sticky_header: str = ""
    # It is promoted after so long and so many requests, both;
    duration_s: Seconds = 60.0
    min_requests: Positive = 1000
    # and rolled back as soon as its error rate exceeds the old one's by more than this,
    max_error_increase: Annotated[float, Meta(ge=0, le=1, description="a share, 0 to 1")] = 0.01
    # its p99 latency is more than so many times the old one's,
    max_latency_ratio: Annotated[float, Meta(ge=1, le=1000, description="1 to 1000")] = 2.0
    # or, in the shadow, more than this share of its rows differ from the old one's by max_difference or more.
    max_drift: Annotated[float, Meta(ge=0, le=1, description="a share, 0 to 1")] = 0.01
    max_difference: Annotated[float, Meta(ge=0, le=1e9, description="a relative difference, 0 or more")] = (
        1e-3
    )


class Logging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.logging]: answered requests, written to TFRecord files of PredictionLogs."""

    # The share of the requests that is logged; 0: none.
    sampling_rate: Annotated[float, Meta(ge=0, le=1, description="a share, 0 to 1")] = 0.0
    # What the files' names begin with, directory included; default: logs/NAME in [server] state_dir.
    filename_prefix: str = ""
    # Log the answers, too.
    responses: bool = True
    # Another file is begun after so many bytes, or after so long (0: however long it takes);
    max_file_bytes: Size = 64 * MIB
    max_file_age_s: Seconds = 3600.0
    # and only the newest so many are kept; 0: all.
    keep_files: Count = 100
    # Requests that wait to be written; what does not fit is dropped.
    max_buffer_bytes: Size = 16 * MIB


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[models]]: one model, whose versions are the numbered directories in base_path, which may be a URL."""

    name: Text
    base_path: Text
    # What prepares a version: "tensorflow", "tflite", or a plug-in of the group fastserve.loaders,
    platform: Text = "tensorflow"
    # and what finds versions: by base_path, or a plug-in of fastserve.sources. `options` are theirs.
    source: str = ""
    options: dict[str, Any] = {}
    # Where a version has both, model.tflite is served and not the SavedModel.
    prefer_tflite: bool = False
    # What a TFLite model's inputs and outputs are called: by its own signatures, or as TensorFlow Serving
    # does, which does not read these: by the names of its tensors, in one signature serving_default.
    tflite_aliases: Literal["signatures", "tensors"] = "signatures"
    tags: tuple[Text, ...] = ("serve",)
    # "auto" measures plain and compiled once and keeps the faster for later versions too.
    xla: Literal["off", "cluster", "full", "auto"] = "off"
    # Requests whose shapes were not compiled beforehand: run without XLA, or be refused.
    unknown_shapes: Literal["plain", "refuse"] = "plain"
    # Whether rows of a batch are independent, so that requests may share one: found out, or told.
    row_wise: Literal["probe"] | bool = "probe"
    # Share of the executors when models compete, and executors that serve nothing else.
    weight: Annotated[float, Meta(gt=0, le=1e6, description="a number more than 0")] = 1.0
    reserved_executors: Count = 0
    # Answer UNAVAILABLE at once when a call's deadline cannot be met.
    shed_predicted: bool = False
    trial_timeout_s: PositiveSeconds = 600.0
    # A file of tokens, one a line: calls must bring one ("authorization: Bearer TOKEN"). Default: no need.
    token_file: str = ""
    batching: Batching = Batching()
    warmup: Warmup = Warmup()
    versions: Versions = Versions()
    rollout: Rollout = Rollout()
    logging: Logging = Logging()
    # Names for versions that clients may ask for.
    labels: dict[str, Annotated[int, Meta(ge=0, description="a version's number")]] = {}


class Gateway(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[gateway]: REST and what else speaks HTTP/1.1, in processes of its own."""

    # Addresses as in [server] listen; none: no gateway.
    listen: tuple[Text, ...] = ()
    # Processes that share these addresses,
    processes: Annotated[int, Meta(ge=1, le=64, description="a number of processes, 1 to 64")] = 1
    # and how much they give way to gRPC's requests, as nice(1) counts it.
    nice: Annotated[int, Meta(ge=0, le=19, description="a nice value, 0 to 19")] = 10
    # For reading a request's body, and again for the model's answer.
    timeout_s: PositiveSeconds = 30.0
    # Of a request, before and after it is decompressed.
    max_body_bytes: MessageSize = 256 * MIB
    # Let web pages of other origins ask.
    cors: bool = False


class Route(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[routes]]: a path that a Python file answers, before and after a model: see fastserve.web."""

    path: Text
    # Has preprocess(request) and postprocess(outputs, request).
    file: Text
    # The model that preprocess gives the inputs of; "": it always says which.
    model: str = ""
    version: Annotated[int, Meta(ge=0, description="a version's number")] | None = None
    label: str = ""
    signature: str = ""
    methods: tuple[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], ...] = ("POST",)
    # Processes that run the file, of each gateway process,
    workers: Annotated[int, Meta(ge=1, le=64, description="a number of processes, 1 to 64")] = 1
    # and the requests that one has at a time, if both functions are async; otherwise it is one.
    concurrency: Annotated[int, Meta(ge=1, le=10_000, description="a number of requests, 1 to 10000")] = 16
    # Requests that wait for a worker; more are refused.
    max_waiting: Count = 100
    # From a request's last byte to its answer. A worker that is stuck then is replaced.
    timeout_s: PositiveSeconds = 10.0
    # Look for changes of the file and of what it imports from its directory.
    reload: bool = False
    max_body_bytes: MessageSize = 16 * MIB


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    server: Server = Server()
    gateway: Gateway = Gateway()
    limits: Limits = Limits()
    executor: Executor = field(default_factory=Executor)
    loading: Loading = Loading()
    monitoring: Monitoring = Monitoring()
    tensorflow: TensorFlow = TensorFlow()
    litert: LiteRT = LiteRT()
    tracing: Tracing = Tracing()
    models: tuple[Model, ...] = ()
    routes: tuple[Route, ...] = ()
