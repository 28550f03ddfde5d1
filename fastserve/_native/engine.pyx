"""Engine: the native data plane behind the front end, as the core's commands drive it.

Used on the loop's thread only. Commands become tasks of native loader threads and come back as mail; no
method here blocks, and no executor or loader ever runs Python.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport strlen
from libcpp cimport bool as c_bool

from fastserve._native cimport scheduler
from fastserve._native.c_engine cimport (
    FS_COUNTERS,
    FS_LOG_RECORDING,
    FS_LOG_STANDING,
    FS_SHA256_BYTES,
    FS_TASK_CALL,
    FS_TASK_CLOSE,
    FS_TASK_LABEL,
    FS_TASK_LOAD,
    FS_TASK_LOG,
    FS_TASK_PUBLISH,
    FS_TASK_RETIRE,
    FS_TASK_ROUTE,
    fs_access,
    fs_access_set,
    fs_counter_name,
    fs_engine_config,
    fs_engine_start,
    fs_engine_stop,
    fs_executors_cpu_us,
    fs_executors_system_allocs,
    fs_grant,
    fs_label,
    fs_loader_give_way,
    fs_loader_hurry,
    fs_loader_nice,
    fs_loader_nice_limited,
    fs_loader_post,
    fs_log_sinks,
    fs_logger_order,
    fs_mail,
    fs_metrics_close,
    fs_metrics_open,
    fs_now_us,
    fs_progress,
    fs_servable_batches_of,
    fs_servable_count,
    fs_signature_plan,
    fs_task,
    fs_task_kind,
    fs_task_progress,
)
from fastserve._native.c_trace cimport fs_trace_close, fs_trace_open
from fastserve._native.c_policy cimport FS_MAX_BUCKETS, fs_policy
from fastserve._native.c_status cimport FS_RESOURCE_EXHAUSTED, fs_fail
from fastserve._native.c_runtime cimport (
    fs_error,
    fs_litert_options,
    fs_plugin,
    fs_runtime,
    fs_runtime_litert,
    fs_runtime_plugin,
    fs_runtime_tensorflow,
    fs_runtime_tensorflow_free,
    fs_runtime_tensorflow_op_library,
    fs_runtime_tensorflow_prime,
    fs_runtime_tensorflow_restore_in_pool,
    fs_slice,
)
from fastserve._native.model_spec cimport ModelSpec
from fastserve._native.request_log cimport LogErrand, RequestLog, make_order, make_request_log
from fastserve._native.route cimport Route
from fastserve._native.runtime cimport Runtime, check

import asyncio
import os
from base64 import b64decode

from fastserve._native.runtime import RuntimeFailure, quiet_stderr

STAGES = ("queued", "open", "warm")  # as fs_stage has them


# TensorFlow's library, LiteRT's or a plug-in's, to be opened off the loop.
cdef struct Library:
    const char *path
    fs_litert_options litert
    fs_slice session_config
    bint restore_in_pool
    const char *op_libraries  # paths, each with its NUL, and an empty one at the end
    fs_runtime *runtime
    const fs_plugin **plugin  # set with the runtime, when it is a plug-in


# The tokens that models ask for, to be changed off the loop.
cdef struct Grants:
    fs_access *access
    const fs_grant *grants
    unsigned n


# A task on its way through the loader. Freed when it is delivered.
cdef struct Errand:
    fs_task task       # first: the mail is the errand
    Library opening    # of FS_TASK_CALL,
    Grants grants      #   or these
    PyObject *future   # a reference of its own
    PyObject *subject  # the Servable, or what keeps `labels` alive; a reference of its own


cdef void deliver(fs_mail *mail) noexcept with gil:
    cdef Errand *errand = <Errand *>mail
    future = <object>errand.future
    subject = <object>errand.subject
    try:
        if isinstance(subject, Servable):
            (<Servable>subject).c = errand.task.servable
            (<Servable>subject).loading = NULL
        if not future.cancelled():
            try:
                check(errand.task.rc, &errand.task.err)
                future.set_result((errand.task.took_us / 1e6, errand.task.warm.failures))
            except RuntimeFailure as failure:
                future.set_exception(failure)
    finally:
        Py_DECREF(future)
        Py_DECREF(subject)
        free(errand)


cdef class Servable:
    """One version that the engine knows: its C structs and what they point to."""

    def __init__(self, Runtime runtime not None, dict spec):
        cdef list signatures = spec["signatures"]
        cdef dict batching = spec["batching"]
        cdef fs_signature_plan *plan
        self.runtime = runtime
        self.spec = ModelSpec(spec)
        self.name = self.spec.model.encode()
        self.model = <const char *>self.name
        self.flags = []
        self.enter("loading")
        self.plans = <fs_signature_plan *>calloc(len(signatures) + 1, sizeof(fs_signature_plan))
        if self.plans is NULL:
            raise MemoryError
        for i, signature in enumerate(signatures):
            plan = &self.plans[i]
            plan.batched = signature["batched"]
            plan.compiled = signature["compiled"]
            plan.method = self.spec.methods[i]
            plan.defaults = self.spec.defaults[i]
            self.fill_broadcast(plan, signature["inputs"], batching["broadcast"])
            buckets = signature["buckets"]
            if len(buckets) > FS_MAX_BUCKETS:
                raise ValueError(f"signature {signature['name']}: {len(buckets)} buckets; at most {FS_MAX_BUCKETS}")
            costs = signature.get("costs_us", {})
            for bucket in sorted(buckets):
                plan.buckets[plan.n_buckets] = bucket
                plan.costs_us[plan.n_buckets] = costs.get(str(bucket), 0.0)
                plan.n_buckets += 1
        warm_up = spec.get("warmup") or {}
        self.warm_iterations = warm_up.get("iterations", 1)
        requests = warm_up.get("requests")
        self.warm_requests = None if requests is None else os.fsencode(requests)
        self.batching.max_batch_size = batching["max_batch_size"]
        self.batching.timeout_us = batching["batch_timeout_us"]
        self.batching.max_enqueued_batches = batching["max_enqueued_batches"]
        self.batching.num_batch_threads = batching["num_batch_threads"]
        self.batching.split_large = batching["split_large_batches"]
        self.batching.refuse_above = batching["refuse_larger"]
        self.batching.pad_variable_length = batching["pad_variable_length_inputs"]
        self.batching.refuse_unknown_shapes = spec.get("unknown_shapes", "plain") == "refuse"
        self.batching.shed_predicted = spec.get("shed_predicted", False)
        self.batching.weight = spec.get("weight", 1.0)
        self.batching.reserved_executors = spec.get("reserved_executors", 0)
        self.signature_def_map = spec.get("signature_def_map") or ""

    def __dealloc__(self):
        free(self.plans)

    cdef void fill_broadcast(self, fs_signature_plan *plan, list inputs, list names) except *:
        """Which inputs may come with one row; what the plan points to lives as long as this object."""
        flags = bytes(port["alias"] in names for port in inputs)
        if any(flags):
            self.flags.append(flags)
            plan.broadcast = <const c_bool *>PyBytes_AS_STRING(flags)

    cdef void enter(self, str state):
        self.state = state
        self.since_us = fs_now_us()

    def status(self) -> dict:
        """Model, version and state, for how long it has been in it, and how far a load has come."""
        cdef fs_progress progress
        row = {
            "model": self.spec.model,
            "version": self.spec.version,
            "state": self.state,
            "seconds": round((fs_now_us() - self.since_us) / 1e6, 3),
        }
        if self.loading is not NULL:
            progress = fs_task_progress(self.loading)
            row |= {"stage": STAGES[progress.stage], "done": progress.done, "total": progress.total}
        return row

    def stats(self) -> list[dict]:
        """Counters of each signature since the version was loaded."""
        cdef int counter, log2
        rows = []
        for i, name in enumerate(self.spec.names):
            row = {"model": self.spec.model, "version": self.spec.version, "signature": name}
            if self.c is not NULL:
                for counter in range(FS_COUNTERS):
                    row[fs_counter_name(counter).decode()] = fs_servable_count(self.c, i, counter)
                row["calls"] = row["ok"] + row["failed"]
                sizes = {}
                for log2 in range(FS_MAX_BUCKETS):
                    n = fs_servable_batches_of(self.c, i, log2)
                    if n:
                        sizes[str(1 << log2)] = n
                row["batch_size_hist"] = sizes
            rows.append(row)
        return rows


cdef object send(Engine engine, Errand *errand, subject):
    """Posts an errand; the future gives (seconds, warm-up failures)."""
    future = engine.loop.create_future()
    Py_INCREF(future)
    Py_INCREF(subject)
    errand.future = <PyObject *>future
    errand.subject = <PyObject *>subject
    errand.task.mail.deliver = deliver
    errand.task.home = engine.home
    fs_loader_post(engine.c.loader, &errand.task)
    return future


cdef object post(Engine engine, fs_task_kind kind, Servable servable, Servable replaces=None):
    """Posts a task about a servable."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.task.kind = kind
    errand.task.servable = servable.c
    if replaces is not None:
        errand.task.replaces = replaces.c
    errand.task.runtime = servable.runtime.c
    errand.task.model = servable.model
    errand.task.version = servable.spec.version
    errand.task.spec = &servable.spec.c
    errand.task.plans = servable.plans
    errand.task.batching = servable.batching
    if kind == FS_TASK_LOAD:
        errand.task.warm.iterations = 0 if "warmup" in engine.ablate else servable.warm_iterations
        if servable.warm_requests is not None:
            errand.task.warm.requests = servable.warm_requests
            errand.task.warm.max_request_bytes = engine.max_message_bytes
        servable.loading = &errand.task
    return send(engine, errand, servable)


cdef object post_labels(Engine engine, str model, dict labels):
    """Posts the replacement of a model's labels."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    cdef list names = [model.encode(), *map(str.encode, labels)]
    # One block for the labels, kept alive with the names by the errand's subject.
    cdef bytearray block = bytearray((len(labels) + 1) * sizeof(fs_label))
    cdef fs_label *c_labels = <fs_label *><char *>block
    cdef bytes name
    for i, version in enumerate(labels.values()):
        name = names[i + 1]
        c_labels[i].name.data = <const uint8_t *><const char *>name
        c_labels[i].name.len = <size_t>len(name)
        c_labels[i].version = version
    name = names[0]
    errand.task.kind = FS_TASK_LABEL
    errand.task.model = <const char *>name
    errand.task.labels = c_labels
    errand.task.n_labels = <unsigned>len(labels)
    return send(engine, errand, (names, block))


cdef int open_library(void *arg, fs_error *err) noexcept nogil:
    """FS_TASK_CALL: the library, and what all sessions share."""
    cdef Library *library = <Library *>arg
    cdef int rc = fs_runtime_tensorflow(library.path, library.runtime, err)
    if rc != 0:
        return rc
    if library.restore_in_pool:
        fs_runtime_tensorflow_restore_in_pool(library.runtime)
    cdef const char *path = library.op_libraries
    while rc == 0 and path[0] != 0:
        rc = fs_runtime_tensorflow_op_library(library.runtime, path, err)
        path += strlen(path) + 1
    if rc == 0:
        rc = fs_runtime_tensorflow_prime(library.runtime, library.session_config, err)
    if rc != 0:
        fs_runtime_tensorflow_free(library.runtime)
    return rc


cdef int open_plug_in(void *arg, fs_error *err) noexcept nogil:
    """FS_TASK_CALL: a plug-in's library."""
    cdef Library *library = <Library *>arg
    return fs_runtime_plugin(library.path, library.plugin, library.runtime, err)


cdef object post_plug_in(Engine engine, Runtime runtime, bytes path):
    """Posts the opening of a plug-in."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.opening.path = <const char *>path
    errand.opening.runtime = &runtime.c
    errand.opening.plugin = <const fs_plugin **>&runtime.plugin
    errand.task.kind = FS_TASK_CALL
    errand.task.call = open_plug_in
    errand.task.arg = &errand.opening
    return send(engine, errand, (runtime, path))


cdef int open_litert_library(void *arg, fs_error *err) noexcept nogil:
    """FS_TASK_CALL: LiteRT's library."""
    cdef Library *library = <Library *>arg
    return fs_runtime_litert(library.path, &library.litert, library.runtime, err)


cdef object post_litert(Engine engine, Runtime runtime, bytes directory, dict settings):
    """Posts the opening of LiteRT's library."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.opening.path = <const char *>directory
    errand.opening.litert.threads = settings["run_threads"]
    errand.opening.litert.interpreters = settings["interpreters"]
    errand.opening.runtime = &runtime.c
    errand.task.kind = FS_TASK_CALL
    errand.task.call = open_litert_library
    errand.task.arg = &errand.opening
    return send(engine, errand, (runtime, directory))


cdef object post_library(
    Engine engine, Runtime runtime, bytes directory, bytes session_config, bytes op_libraries
):
    """Posts the opening of TensorFlow's library."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.opening.path = <const char *>directory
    errand.opening.session_config.data = <const uint8_t *><const char *>session_config
    errand.opening.session_config.len = <size_t>len(session_config)
    errand.opening.restore_in_pool = "pool" in engine.ablate
    errand.opening.op_libraries = <const char *>op_libraries
    errand.opening.runtime = &runtime.c
    errand.task.kind = FS_TASK_CALL
    errand.task.call = open_library
    errand.task.arg = &errand.opening
    return send(engine, errand, (runtime, directory, session_config, op_libraries))


cdef int set_access(void *arg, fs_error *err) noexcept nogil:
    """FS_TASK_CALL: the tokens."""
    cdef Grants *grants = <Grants *>arg
    cdef int rc = fs_access_set(grants.access, grants.grants, grants.n)
    if rc != 0:
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory")
    return rc


cdef object post_grants(Engine engine, dict tokens):
    """Posts the replacement of all models' tokens."""
    cdef list kept = [(model.encode(), b"".join(map(bytes.fromhex, tokens[model]))) for model in tokens]
    cdef bytearray block = bytearray((len(kept) + 1) * sizeof(fs_grant))
    cdef fs_grant *grants = <fs_grant *><char *>block
    cdef bytes name, digests
    for i, (name, digests) in enumerate(kept):
        if len(digests) != FS_SHA256_BYTES * len(tokens[name.decode()]):
            raise ValueError(f"model {name.decode()}: a SHA-256 has {FS_SHA256_BYTES} bytes")
        grants[i].model.data = <const uint8_t *><const char *>name
        grants[i].model.len = <size_t>len(name)
        grants[i].digests = <const uint8_t *><const char *>digests
        grants[i].n = <unsigned>(len(digests) // FS_SHA256_BYTES)
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.grants.access = &engine.c.access
    errand.grants.grants = grants
    errand.grants.n = <unsigned>len(kept)
    errand.task.kind = FS_TASK_CALL
    errand.task.call = set_access
    errand.task.arg = &errand.grants
    return send(engine, errand, (kept, block))


cdef object post_route(Engine engine, str model, Route route):
    """Posts a model's route, or that it has none."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    cdef bytes name = model.encode()
    errand.task.kind = FS_TASK_ROUTE
    errand.task.model = <const char *>name
    if route is not None:
        errand.task.route = route.c
    return send(engine, errand, (name, route))


cdef object post_log(Engine engine, RequestLog log, bint attached):
    """Posts that the model of `log` has it, or none."""
    cdef Errand *errand = <Errand *>calloc(1, sizeof(Errand))
    if errand is NULL:
        raise MemoryError
    errand.task.kind = FS_TASK_LOG
    errand.task.model = <const char *>log.name
    if attached:
        errand.task.log = log.c
    return send(engine, errand, log)


cdef void deliver_order(fs_mail *mail) noexcept with gil:
    cdef LogErrand *errand = <LogErrand *>mail
    future = <object>errand.future
    subject = <object>errand.subject
    try:
        if not future.cancelled():
            future.set_result(None)
    finally:
        Py_DECREF(future)
        Py_DECREF(subject)
        free(errand)


cdef object post_order(Engine engine, RequestLog log, fs_log_sinks sink, dict settings):
    """Tells the logger; the future is done when it has done so."""
    cdef LogErrand *errand = make_order(log, sink, settings)
    future = engine.loop.create_future()
    Py_INCREF(future)
    Py_INCREF(log)
    errand.future = <PyObject *>future
    errand.subject = <PyObject *>log
    errand.order.home = engine.home
    errand.order.deliver = deliver_order
    fs_logger_order(engine.c.logger, &errand.order)
    return future


cdef Servable find(Engine engine, str model, version, str state, dict home=None):
    cdef Servable servable = (engine.servables if home is None else home).get((model, version))
    if servable is None or servable.state != state:
        have = "not here" if servable is None else servable.state
        raise RuntimeFailure("FAILED_PRECONDITION", f"{model}:{version} is {have}, not {state}")
    return servable


@cython.no_gc
cdef class Engine:
    """Catalog, executors, loaders. Made once, by the core, from the configuration's tables.

    `policy_library` is the path of a plug-in that decides what runs next, or None. `ablate` names what is left out,
    for measurement and for nothing else: "pool" (restore ops run in TensorFlow's pool, not in the loader), "warmup",
    "nice" (loaders do not give way), "breaks", "spread", "loans" (executors wait for what loaders hold), "unload"
    (versions are closed on the loop). Other names are not the engine's.
    `metrics` is the descriptor of the memory where calls are counted (csrc/metrics.h), or -1; `counts`: whether they are.
    `trace` is that of the memory in which the threads tell what they do (csrc/trace_ring.h); -1: nowhere.
    Raises MemoryError when threads or memory are short, RuntimeFailure when the plug-in is no good.
    """

    def __init__(
        self, loop, dict server, dict limits, dict executor, dict loading=None, ablate=(), str policy_library=None,
        int metrics=-1, int trace=-1
    ):
        cdef fs_engine_config config
        cdef int threads
        cdef fs_policy policy = scheduler.policy()
        if policy_library:
            scheduler.plug_in(policy_library, &policy)
        config.executors.threads = executor["threads"]
        config.executors.spin_us = executor["spin_us"]
        config.executors.tensor_content = server["tensor_content_replies"]
        config.executors.compress_replies = server["reply_compression"] == "match"
        self.ablate = frozenset(ablate)
        config.executors.no_spread = "spread" in self.ablate
        self.max_message_bytes = limits["max_message_bytes"]
        config.loader.threads = executor["load_threads"]
        config.loader.nice = 0 if loading is None or "nice" in self.ablate else loading["nice"]
        config.loader.no_breaks = "breaks" in self.ablate
        config.loader.no_loans = "loans" in self.ablate
        config.loader.close_on_poster = "unload" in self.ablate
        config.max_message_bytes = limits["max_message_bytes"]
        config.max_compressed_bytes = limits["max_compressed_bytes"]
        self.session_run = server["session_run"]
        config.named_run_threads = executor["threads"] if self.session_run else 0
        config.check_method_names = server["check_method_names"]
        self.loop = loop
        self.servables = {}
        self.replacements = {}
        self.routes = {}
        self.logs = {}
        self.logging = asyncio.Lock()
        self.on_loss = None
        self.counts = metrics >= 0 and fs_metrics_open(metrics, &self.metrics) == 0
        config.metrics = self.metrics
        if trace >= 0:
            # Executors, threads for SessionRun, loaders, I/O threads (one at least where there is TLS), the switcher
            # and the loop.
            threads = executor["threads"] + config.named_run_threads + executor["load_threads"]
            self.trace = fs_trace_open(trace, <unsigned>(threads + max(1, server["io_threads"]) + 2))
        config.trace = self.trace
        self.c = fs_engine_start(&config, &policy)
        if self.c is NULL:
            fs_metrics_close(self.metrics)
            self.metrics = NULL
            raise MemoryError("the engine cannot start: no memory, threads or descriptors")

    def __dealloc__(self):
        if self.c is NULL:  # else its threads may still write there
            fs_trace_close(self.trace)

    def stop(self) -> None:
        """Ends the native threads. Every call is answered before; what is loaded is closed with the process."""
        if self.c is not NULL:
            fs_engine_stop(self.c)
            self.c = NULL
            fs_metrics_close(self.metrics)
            self.metrics = NULL

    async def open_tensorflow(self, str library_dir, dict spec, op_libraries=()):
        """TensorFlow's runtime, opened off the loop, with the devices and pools that the session of `spec` asks
        for: made here, they have this process's priority, whatever the thread that loads the first model has.
        `op_libraries` are loaded before. RuntimeFailure when something cannot be opened."""
        cdef Runtime runtime = Runtime.__new__(Runtime)
        if not library_dir:
            raise RuntimeFailure(
                "FAILED_PRECONDITION", "no model needed TensorFlow when the core started: restart fastserve"
            )
        config = b64decode(spec.get("session_config") or "", validate=True)
        with quiet_stderr():
            paths = b"".join([path.encode() + b"\0" for path in op_libraries]) + b"\0"
            await post_library(self, runtime, library_dir.encode(), config, paths)
        return runtime

    async def open_litert(self, dict settings):
        """LiteRT's runtime, opened off the loop: `library_dir`, `run_threads`, `interpreters`. RuntimeFailure when it
        cannot be."""
        cdef Runtime runtime = Runtime.__new__(Runtime)
        if not settings["library_dir"]:
            raise RuntimeFailure(
                "FAILED_PRECONDITION", "LiteRT was not installed when the core started: restart fastserve"
            )
        with quiet_stderr():
            await post_litert(self, runtime, settings["library_dir"].encode(), settings)
        return runtime

    async def open_plugin(self, str library):
        """The runtime of a plug-in, opened off the loop. RuntimeFailure when it cannot be."""
        cdef Runtime runtime = Runtime.__new__(Runtime)
        await post_plug_in(self, runtime, library.encode())
        return runtime

    def give_way(self) -> None:
        """Requests come from now on: loads and closes give way to them."""
        fs_loader_give_way(self.c.loader)

    def hurry(self) -> None:
        """What is being loaded or closed goes on at normal priority until all of it is done."""
        fs_loader_hurry(self.c.loader)

    @property
    def traces(self) -> bool:
        """Whether the threads tell what they do."""
        return self.trace is not NULL

    @property
    def nice(self) -> int:
        """The nice value of loaders that give way."""
        return fs_loader_nice(self.c.loader)

    @property
    def nice_limited(self) -> bool:
        """Whether that is less than was asked for, since this process may not raise a thread's priority again."""
        return fs_loader_nice_limited(self.c.loader)

    async def load(self, Runtime runtime not None, dict spec, replacement=False) -> tuple[float, int]:
        """Opens and warms a version in a loader thread. Returns seconds and the number of warm-up runs that failed.

        With `replacement` it is the same version as one that is published, to take its place by `replace`.
        """
        key = (spec["model"], spec["version"])
        home = self.replacements if replacement else self.servables
        if key in home:
            raise RuntimeFailure("ALREADY_EXISTS", f"{key[0]}:{key[1]} is {home[key].state}")
        if replacement:
            find(self, key[0], key[1], "published")
        servable = Servable(runtime, spec)
        home[key] = servable
        try:
            took = await post(self, FS_TASK_LOAD, servable)
        except RuntimeFailure:
            del home[key]
            raise
        servable.enter("loaded")
        return took

    async def publish(self, str model, version) -> None:
        """Makes a loaded version visible."""
        cdef Servable servable = find(self, model, version, "loaded")
        await post(self, FS_TASK_PUBLISH, servable)
        servable.enter("published")

    async def replace(self, str model, version) -> None:
        """Puts a loaded replacement in the place of the published version, which is retired and closed. Between
        one request and the next, and nobody is answered by both."""
        cdef Servable servable = self.replacements.get((model, version))
        if servable is None or servable.state != "loaded":
            raise RuntimeFailure("FAILED_PRECONDITION", f"{model}:{version} has no replacement that is loaded")
        cdef Servable before = find(self, model, version, "published")
        servable.enter("publishing")
        try:
            await post(self, FS_TASK_PUBLISH, servable, before)
        except RuntimeFailure:
            servable.enter("loaded")
            raise
        servable.enter("published")
        self.servables[(model, version)] = self.replacements.pop((model, version))
        before.enter("retiring")
        await post(self, FS_TASK_RETIRE, before)
        before.enter("closing")
        await post(self, FS_TASK_CLOSE, before)

    async def retire(self, str model, version) -> None:
        """Makes a version invisible; returns when its calls are answered."""
        cdef Servable servable = find(self, model, version, "published")
        servable.enter("retiring")
        try:
            await post(self, FS_TASK_RETIRE, servable)
        except RuntimeFailure:
            servable.enter("published")
            raise
        servable.enter("loaded")

    async def close(self, str model, version) -> None:
        """Frees a version that is not visible, or a replacement that is not wanted after all."""
        home = self.replacements if (model, version) in self.replacements else self.servables
        cdef Servable servable = find(self, model, version, "loaded", home)
        servable.enter("closing")
        await post(self, FS_TASK_CLOSE, servable)
        del home[(model, version)]

    async def label(self, str model, dict labels) -> None:
        """Replaces a model's version labels."""
        await post_labels(self, model, labels)

    async def grant(self, dict tokens) -> None:
        """Replaces what calls must show: by model the SHA-256 of each token that it takes, in hexadecimal. Models
        that are not there are open to all."""
        await post_grants(self, tokens)

    async def route(self, str model, dict settings) -> None:
        """Divides the model's traffic as `settings` say (see Route), or no more (None)."""
        route = None if settings is None else Route(model, settings)
        await post_route(self, model, route)
        if route is None:
            self.routes.pop(model, None)
        else:
            self.routes[model] = route

    def rollout_stats(self, str model) -> dict:
        """The figures of the model's route since it was set."""
        if model not in self.routes:
            raise RuntimeFailure("FAILED_PRECONDITION", f"{model} has no route")
        return self.routes[model].stats()

    def tell_losses(self, on_loss) -> None:
        """Calls `on_loss` with a log's statistics when it has lost twice as much as the last time. Before `log`."""
        self.on_loss = on_loss

    async def log(self, str model, dict settings) -> None:
        """Writes a share of the model's answered requests to files, or no more (None). `settings`: path (a prefix),
        sampling_rate, responses, max_file_bytes, max_file_age_s (0: any), keep_files (0: all), max_buffer_bytes,
        tags."""
        await self.set_sink(model, FS_LOG_STANDING, settings)

    async def record(self, str model, dict settings) -> dict | None:
        """Writes the next requests of the model to one file, whose name it has once they are there, or no more
        (None), and then tells what has come of that. `settings`: path, records, sampling_rate."""
        if settings is not None and settings["records"] < 1:
            raise ValueError(f"records {settings['records']}: 1 or more")
        stats = await self.set_sink(model, FS_LOG_RECORDING, settings)
        return None if stats is None else stats["recording"]

    async def set_sink(self, str model, fs_log_sinks sink, dict settings):
        cdef RequestLog log
        async with self.logging:
            log = self.logs.get(model)
            if log is None:
                if settings is None:
                    return None
                log = self.logs[model] = make_request_log(model, self.home, self.on_loss)
            if settings is not None:
                await post_log(self, log, True)
            try:
                await post_order(self, log, sink, settings)
                stats = log.stats()
                if sink == FS_LOG_STANDING:
                    log.standing = settings
                else:
                    log.recording = settings
            finally:
                if log.standing is None and log.recording is None:
                    await post_log(self, log, False)
            return stats

    async def close_logs(self) -> None:
        """Writes what is buffered, and gives every file its name."""
        await post_order(self, None, FS_LOG_STANDING, None)

    def log_stats(self) -> list[dict]:
        """The figures of every log since it was made, and of a recording since it began."""
        return [log.stats() for log in self.logs.values()]

    def versions(self) -> list[dict]:
        """What is here: model, version, state, seconds; while it is loading stage, done and total, too."""
        return [row.status() for row in [*self.servables.values(), *self.replacements.values()]]

    def signature_def_map(self, str model, version) -> bytes:
        """A serialized SignatureDefMap: what `load` was given for the version that is there now. KeyError."""
        return b64decode(self.servables[(model, version)].signature_def_map)

    def stats(self) -> list[dict]:
        """Counters of every signature of every version."""
        return [row for servable in self.servables.values() for row in servable.stats()]

    def cpu_us(self) -> int:
        """CPU time that the executors have used."""
        return fs_executors_cpu_us(self.c.executors)

    def system_allocs(self) -> int:
        """Times the executors' own code asked the system for memory; flat in steady state."""
        return fs_executors_system_allocs(self.c.executors)
