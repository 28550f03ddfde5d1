"""A command line of tensorflow_model_server as a configuration: every flag and every file together.

All that is wrong is found in one go, before anything is started or written. Called when the command starts,
and again whenever the model_config_file has changed.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass

from fastserve.compat.batching import add_batching
from fastserve.compat.channel import add_limits
from fastserve.compat.draft import Draft, Entry
from fastserve.compat.flag_table import FLAGS, Verdict
from fastserve.compat.flags import Flags
from fastserve.compat.models import add_models
from fastserve.compat.monitoring import add_monitoring
from fastserve.compat.platform import add_platform, set_iterations
from fastserve.compat.rest import add_rest
from fastserve.compat.session import add_sessions
from fastserve.compat.tflite import add_tflite
from fastserve.compat.tls import add_tls
from fastserve.config import Config, Model
from fastserve.config_read import config_of, state_home
from fastserve.errors import ConfigError

_MAX_LOAD_THREADS = 16
_METHOD_CHECK = "enable_signature_method_name_check"
_NEW_MODEL = {"": {"name": Entry("new"), "base_path": Entry("/")}}


@dataclass(frozen=True)
class ModelServer:
    """`config`: what is served. `new_model`: the settings of a model that HandleReloadConfigRequest adds.
    `draft`: how it came about."""

    config: Config
    new_model: Model
    draft: Draft


def model_server(flags: Flags, *, ipv6: bool | None = None) -> ModelServer:
    """ConfigError lists all that is wrong. `ipv6`: whether there is IPv6; None: found out."""
    draft = Draft()
    _add_verdicts(draft, flags)
    every = "[::]" if (has_ipv6() if ipv6 is None else ipv6) else "0.0.0.0"
    state_dir = _add_server(draft, flags, every)
    add_rest(draft, flags, every)
    add_tls(draft, flags, state_dir)
    add_limits(draft, flags)
    _add_loading(draft, flags)
    add_models(draft, flags, f"{state_dir}/logs")
    _add_settings(draft, flags)
    add_monitoring(draft, flags)
    if draft.problems:
        raise ConfigError(draft.problems)
    whence = flags.text("model_config_file") or "the command line"
    config = config_of(draft.toml_tables(), whence)
    (new_model,) = config_of(draft.toml_tables([_NEW_MODEL]), whence).models
    return ModelServer(config, new_model, draft)


def has_ipv6() -> bool:
    """Whether a socket can be bound to an IPv6 address here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _add_verdicts(draft: Draft, flags: Flags) -> None:
    """A line for each flag given that has no effect; a problem for each that is refused."""
    for flag in FLAGS:
        value = flags.given.get(flag.name)
        if value is None:
            continue
        if flag.verdict is Verdict.NO_EFFECT:
            draft.note(f"--{flag.name} has no effect: {flag.text}")
        elif flag.verdict is Verdict.REFUSED and value:
            draft.problem(f"--{flag.name} is refused: {flag.text}")


def _add_server(draft: Draft, flags: Flags, every: str) -> str:
    """[server]; the state directory. `every`: the host that is every interface."""
    port, path = flags.number("port"), flags.text("grpc_socket_path")
    listen = []
    if port:
        listen.append(f"{every}:{port}")
    if path:
        listen.append(f"unix:{os.path.abspath(path)}")
    if not 0 <= port <= 65535:
        draft.problem(f"--port={port}: expected 1 to 65535, or 0 with --grpc_socket_path")
    elif not listen:
        draft.problem("server_options.grpc_port is not set. Give --port, or --grpc_socket_path")
    draft.set("server", "listen", listen, "--port, --grpc_socket_path")
    # Short: the path of a unix socket within has little room.
    name = f"tfserving-{port or hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]}"
    state_dir = str(state_home() / "fastserve" / name)
    draft.set("server", "state_dir", state_dir, "one for each daemon")
    if flags.is_on("enable_serialization_as_tensor_content"):
        draft.set("server", "tensor_content_replies", True, "--enable_serialization_as_tensor_content")
    poll_s = flags.number("model_config_file_poll_wait_seconds")
    if poll_s < 0:
        draft.problem(f"--model_config_file_poll_wait_seconds={poll_s}: expected 0 or more")
    draft.set("server", "config_poll_s", float(max(poll_s, 0)), "--model_config_file_poll_wait_seconds")
    if poll_s > 0 and not flags.text("model_config_file"):
        draft.note("--model_config_file_poll_wait_seconds has no effect without --model_config_file")
    return state_dir


def _add_loading(draft: Draft, flags: Flags) -> None:
    """[loading] and [executor]."""
    poll_s = flags.number("file_system_poll_wait_seconds")
    if poll_s < 0:
        draft.problem(
            f"--file_system_poll_wait_seconds={poll_s}: expected 0 or more; below it is for tests only"
        )
    draft.set("loading", "poll_s", float(max(poll_s, 0)), "--file_system_poll_wait_seconds")
    retries = flags.number("max_num_load_retries")
    if not 0 <= retries <= 1_000_000:
        draft.problem(f"--max_num_load_retries={retries}: expected 0 to 1000000")
    draft.set("loading", "retries", retries, "--max_num_load_retries")
    if "load_retry_interval_micros" in flags.given:
        pause_s = max(flags.number("load_retry_interval_micros"), 0) / 1e6
        draft.set("loading", "retry_s", pause_s, "--load_retry_interval_micros")
        draft.set("loading", "retry_max_s", pause_s)
    if flags.is_on("allow_version_labels_for_unavailable_models"):
        draft.set("loading", "labels_for_unavailable", True, "--allow_version_labels_for_unavailable_models")
    threads = flags.number("num_load_threads")
    if threads < 0:
        draft.problem(f"--num_load_threads={threads}: expected 0 to {_MAX_LOAD_THREADS}")
    if threads > _MAX_LOAD_THREADS:
        draft.note(f"--num_load_threads={threads}: {_MAX_LOAD_THREADS} load, the most there are")
    if threads > 0:
        draft.set("executor", "load_threads", min(threads, _MAX_LOAD_THREADS), "--num_load_threads")


def _add_settings(draft: Draft, flags: Flags) -> None:
    """What every model is served with: of the platform's configuration, or of the flags."""
    if _METHOD_CHECK in flags.given:
        draft.set("server", "check_method_names", flags.is_on(_METHOD_CHECK), f"--{_METHOD_CHECK}")
    if libraries := [os.path.abspath(path) for path in flags.text("custom_op_library").split(",") if path]:
        draft.set("tensorflow", "op_libraries", libraries, "--custom_op_library")
    if flags.text("platform_config_file"):
        add_platform(draft, flags)
        return
    add_batching(draft, flags)
    add_sessions(draft, flags)
    add_tflite(draft, flags)
    if "saved_model_tags" in flags.given:
        tags = [tag for tag in flags.text("saved_model_tags").split(",") if tag] or ["serve"]
        draft.set_every_model("", "tags", list(dict.fromkeys(tags)), "--saved_model_tags")
    if not flags.is_on("enable_model_warmup"):
        draft.set_every_model("warmup", "records", False, "--enable_model_warmup=false")
    iterations = flags.number("num_request_iterations_for_warmup")
    if iterations > 0:
        set_iterations(draft, iterations, "--num_request_iterations_for_warmup")
