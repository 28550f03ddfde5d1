"""What a wrong configuration file is told: file, line, table, key, value, and what would be right."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

import pytest

from fastserve.config_read import parse_config
from fastserve.errors import ConfigError

MODEL = '[[models]]\nname = "ranker"\nbase_path = "/models/ranker"\n'


def route(keys: str) -> str:
    """A configuration with one route, whose keys begin in line 7."""
    gateway = '[gateway]\nlisten = ["127.0.0.1:0"]\n'
    return f'{MODEL}{gateway}[[routes]]\n{keys}\nfile = "a.py"\n'


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.toml")
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[server]\nlissten = ["a"]\n' + MODEL,
            "c.toml:2: [server] lissten: no such key; did you mean listen?",
        ),
        ("[limts]\n" + MODEL, "c.toml:1: limts: no such key; did you mean limits?"),
        (
            '[server]\nio_threads = "two"\n' + MODEL,
            'c.toml:2: [server] io_threads = "two": expected a number of threads, 0 to 256',
        ),
        (
            "[server]\nio_threads = true\n" + MODEL,
            "c.toml:2: [server] io_threads = true: expected a number of threads, 0 to 256",
        ),
        (
            "[executor]\nthreads = 65\n" + MODEL,
            "c.toml:2: [executor] threads = 65: expected a number of threads, 1 to 64",
        ),
        (
            MODEL + 'xla = "ful"\n',
            'c.toml:4: [[models]] ranker, xla = "ful": expected "off", "cluster", "full" or "auto"; '
            'did you mean "full"?',
        ),
        (
            MODEL + 'row_wise = "yes"\n',
            'c.toml:4: [[models]] ranker, row_wise = "yes": expected "probe" or true or false',
        ),
        (
            MODEL + "max_batch_size = 3\n",
            "c.toml:4: [[models]] ranker, max_batch_size: no such key here; it belongs in [models.batching]",
        ),
        (
            MODEL + '[tracing]\notlp_endpoint = "collector:4318"\n',
            'c.toml:5: [tracing] otlp_endpoint = "collector:4318": expected a URL of OTLP over HTTP, '
            'such as "http://collector:4318/v1/traces"',
        ),
        (
            MODEL + "[tracing]\nsample_ratio = 0.5\n",
            "c.toml:5: [tracing] sample_ratio = 0.5: means nothing without otlp_endpoint",
        ),
        (
            MODEL + "[tracing]\nsample_ratio = 2.0\n",
            "c.toml:5: [tracing] sample_ratio = 2.0: expected a share, 0 to 1",
        ),
        (
            MODEL + '[tensorflow]\nsession_config = "gpu_options {\\n allow_grwth: true }"\n',
            "c.toml:5: [tensorflow] session_config: its text:2: GPUOptions has no field allow_grwth; did you mean allow_growth?",
        ),
        (
            MODEL + '[tensorflow]\nsession_config = "gpu_options { allow_growth: true }"\n',
            "c.toml:5: [tensorflow] session_config: gpu_options.allow_growth: [tensorflow] gpu_allow_growth says this",
        ),
        (
            MODEL + '[models.batching]\nversion_file = "a/b"\n',
            'c.toml:5: [models.batching] of ranker, version_file = "a/b": expected the name of a file, without a path',
        ),
        (
            MODEL + '[models.batching]\nbroadcast = ["user", "query", "user"]\n',
            'c.toml:5: [models.batching] of ranker, broadcast[2] = "user": this input is there twice',
        ),
        (
            MODEL + "[models.batching]\nmax_batch_size = 0\n",
            "c.toml:5: [models.batching] of ranker, max_batch_size = 0: expected a number of rows, 1 to 1000000",
        ),
        (
            MODEL + "batching = { max_batch_size = 2.5 }\n",
            "c.toml:4: [models.batching] of ranker, max_batch_size = 2.5: expected a number of rows, 1 to 1000000",
        ),
        (
            '[limits]\nmax_total_bytes = "12 parsecs"\n' + MODEL,
            'c.toml:2: [limits] max_total_bytes = "12 parsecs": expected a number of bytes, 1024 or more, '
            'or a string such as "64MiB"',
        ),
        (
            "[limits]\nkeepalive_s = nan\n" + MODEL,
            "c.toml:2: [limits] keepalive_s = nan: expected a number of seconds, 0 or more",
        ),
        (
            "[limits]\nkeepalive_s = inf\n" + MODEL,
            "c.toml:2: [limits] keepalive_s = inf: expected a number of seconds, 0 or more",
        ),
        ("server = 3\n" + MODEL, "c.toml:1: server = 3: expected a table, [server]"),
        ("models = 3\n", "c.toml:1: models: expected one or more tables, [[models]]"),
        ('[[models]]\nname = "x"\n', "c.toml:1: [[models]] x, base_path: is missing"),
        ('[[models]]\nbase_path = "x"\n', "c.toml:1: [[models]] number 1, name: is missing"),
        ("", "c.toml: there is no model to serve: expected at least one [[models]] with name and base_path"),
        (
            '[server]\nlisten = ["a:1", ":2"]\n' + MODEL,
            'c.toml:2: [server] listen[1] = ":2": a host is missing; "0.0.0.0:2" listens on every interface',
        ),
        (
            '[server]\nlisten = ["a:1", "a:1"]\n' + MODEL,
            'c.toml:2: [server] listen[1] = "a:1": this address is there twice',
        ),
        (
            "[server]\nlisten = []\n" + MODEL,
            'c.toml:2: [server] listen = []: expected at least one address, such as "127.0.0.1:8500"',
        ),
        (
            MODEL + MODEL,
            'c.toml:5: [[models]] ranker, name = "ranker": model number 1 has this name too; each needs its own',
        ),
        (
            '[[models]]\nname = "a/b"\nbase_path = "x"\n',
            'c.toml:2: [[models]] a/b, name = "a/b": a name has no "/", no ":" and no control characters',
        ),
        (
            MODEL + '[models.versions]\npolicy = "specific"\n',
            "c.toml:4: [models.versions] of ranker, specific: "
            'policy = "specific" needs at least one version here',
        ),
        (
            MODEL + "[models.versions]\nspecific = [3]\n",
            'c.toml:5: [models.versions] of ranker, specific = [3]: means nothing with policy = "latest"',
        ),
        (
            MODEL + '[models.labels]\n"not a label" = 3\n',
            "c.toml:4: [models.labels] of ranker, not a label: a label has letters, digits and _ only",
        ),
        (
            MODEL + '[models.versions]\ntransition = "resource"\n[models.rollout]\nmode = "canary"\n',
            'c.toml:5: [models.versions] of ranker, transition = "resource": unloads the old version first, '
            'so nothing is left to compare with: expected "availability", or rollout.mode = "off"',
        ),
        (
            MODEL + "[models.batching]\nmax_batch_size = 48\nallowed_batch_sizes = [1, 32]\n",
            "c.toml:6: [models.batching] of ranker, allowed_batch_sizes = [1, 32]: "
            "the last size must be max_batch_size, which is 48",
        ),
        (
            MODEL + "[models.batching]\nallowed_batch_sizes = [1, 512, 512]\n",
            "c.toml:5: [models.batching] of ranker, allowed_batch_sizes = [1, 512, 512]: expected sizes that increase",
        ),
        (
            MODEL + "[models.batching]\nmax_execution_batch_size = 8\nallowed_batch_sizes = [1, 512]\n",
            "c.toml:6: [models.batching] of ranker, allowed_batch_sizes = [1, 512]: "
            "the last size must be max_execution_batch_size, which is 8",
        ),
        (
            MODEL + f"[models.batching]\nmax_batch_size = 33\nallowed_batch_sizes = {list(range(1, 34))}\n",
            f"c.toml:6: [models.batching] of ranker, allowed_batch_sizes = {str(list(range(1, 34)))[:117]}...: "
            "has 33 sizes; expected at most 32",
        ),
        (
            MODEL + "[models.batching]\nmax_execution_batch_size = 1024\n",
            "c.toml:5: [models.batching] of ranker, max_execution_batch_size = 1024: "
            "is larger than max_batch_size: expected 1 to 512",
        ),
        (
            MODEL + "[models.batching]\nmax_execution_batch_size = 8\nsplit_large_batches = false\n",
            "c.toml:5: [models.batching] of ranker, max_execution_batch_size = 8: "
            "means nothing without split_large_batches = true",
        ),
        (
            "[executor]\nthreads = 2\n" + MODEL + "reserved_executors = 2\n",
            "c.toml:2: [executor] threads: is 2, but the models reserve 2 executors together and at least one "
            "must stay free for the others: expected 3 or more",
        ),
        (
            '[limits]\nmax_total_bytes = "1MiB"\n' + MODEL,
            "c.toml:2: [limits] max_total_bytes: is 1048576 bytes, less than max_message_bytes (268435456): "
            "a message of that size could never be served; raise max_total_bytes or lower max_message_bytes",
        ),
        (
            '[server.tls]\ncertificate = "c.pem"\n' + MODEL,
            "c.toml:1: [server.tls] key: is missing, and certificate is there: they go together",
        ),
        (
            '[server.tls]\nkey = "k.pem"\n' + MODEL,
            "c.toml:1: [server.tls] certificate: is missing, and key is there: they go together",
        ),
        (
            '[server.tls]\nclient_ca = "ca.pem"\n' + MODEL,
            'c.toml:2: [server.tls] client_ca = "ca.pem": means nothing without certificate and key',
        ),
        (
            '[server.tls]\ncertificat = "c.pem"\n' + MODEL,
            "c.toml:2: [server.tls] certificat: no such key; did you mean certificate?",
        ),
        (
            "[server]\nsocket_mode = 660\n" + MODEL,
            "c.toml:2: [server] socket_mode = 660: expected a file mode, such as 0o660",
        ),
        (
            '[server]\nadmin_listen = "8510"\n' + MODEL,
            'c.toml:2: [server] admin_listen = "8510": expected "HOST:PORT", "[IPV6]:PORT" or "unix:PATH"',
        ),
        (
            '[server]\nadmin_listen = "127.0.0.1:8510"\nreload_rpc = false\n' + MODEL,
            'c.toml:2: [server] admin_listen = "127.0.0.1:8510": means nothing with reload_rpc = false; remove one of the two',
        ),
        (
            '[server]\nlisten = ["127.0.0.1:8510"]\nadmin_listen = "127.0.0.1:8510"\n' + MODEL,
            'c.toml:3: [server] admin_listen = "127.0.0.1:8510": is in listen, too: expected an address of its own',
        ),
        (
            '[monitoring]\nlisten = ["8501"]\n' + MODEL,
            'c.toml:2: [monitoring] listen[0] = "8501": expected "HOST:PORT", "[IPV6]:PORT" or "unix:PATH"',
        ),
        (
            '[monitoring]\nlisten = ["127.0.0.1:8501", "127.0.0.1:8501"]\n' + MODEL,
            'c.toml:2: [monitoring] listen[1] = "127.0.0.1:8501": this address is there twice, here, in [server] or '
            "in [gateway]: expected one of its own",
        ),
        (
            '[server]\nlisten = ["127.0.0.1:8500"]\n[monitoring]\nlisten = ["127.0.0.1:8500"]\n' + MODEL,
            'c.toml:4: [monitoring] listen[0] = "127.0.0.1:8500": this address is there twice, here, in [server] or '
            "in [gateway]: expected one of its own",
        ),
        (
            '[monitoring]\nmetrics_path = "metrics?x"\n' + MODEL,
            'c.toml:2: [monitoring] metrics_path = "metrics?x": expected a path of letters, digits and "-._~", such as '
            '"/monitoring/prometheus/metrics"',
        ),
        (
            '[monitoring]\nmetrics_path = "/readyz"\n' + MODEL,
            'c.toml:2: [monitoring] metrics_path = "/readyz": something else is there: expected a path of its own',
        ),
        (
            '[monitoring]\nmetrics_path = "/v1/models"\n' + MODEL,
            'c.toml:2: [monitoring] metrics_path = "/v1/models": something else is there: expected a path of its own',
        ),
        (
            '[tensorflow]\ndevice = "cpu"\nvisible_devices = "0"\n' + MODEL,
            'c.toml:3: [tensorflow] visible_devices = "0": means nothing with device = "cpu"; remove one of the two',
        ),
        (
            route('path = "rank"'),
            'c.toml:7: [[routes]] rank, path = "rank": expected a path such as "/rank": "/" first, no query, nothing quoted',
        ),
        (
            route('path = "/V1/models/x"'),
            'c.toml:7: [[routes]] /V1/models/x, path = "/V1/models/x": what is below /v1/ is the REST API\'s: expected another path',
        ),
        (
            route('path = "/healthz"'),
            'c.toml:7: [[routes]] /healthz, path = "/healthz": is taken by health, metrics or the page: expected another path',
        ),
        (
            route('path = "/a"') + '[[routes]]\npath = "/a"\nfile = "b.py"\n',
            'c.toml:10: [[routes]] /a, path = "/a": route number 1 has this path, too',
        ),
        (
            route('path = "/a"\nmodel = "rankr"'),
            'c.toml:8: [[routes]] /a, model = "rankr": there is no such model; there are: ranker',
        ),
        (
            route('path = "/a"\nmodel = "ranker"\nversion = 1\nlabel = "x"'),
            'c.toml:10: [[routes]] /a, label = "x": means nothing with version: remove one of the two',
        ),
        (
            route('path = "/a"\nsignature = "x"'),
            'c.toml:8: [[routes]] /a, signature = "x": means nothing without model',
        ),
        (
            route('path = "/a"\nmethods = []'),
            'c.toml:8: [[routes]] /a, methods = []: expected at least one, usually "POST"',
        ),
        (
            route('path = "/a"\nmethods = ["GET", "POST", "GET"]'),
            'c.toml:8: [[routes]] /a, methods = ["GET", "POST", "GET"]: a method is there twice',
        ),
        (
            MODEL + '[[routes]]\npath = "/a"\nfile = "a.py"\n',
            'c.toml:5: [[routes]] /a, path = "/a": nothing listens for it: expected an address in [gateway] listen, such as "127.0.0.1:8501"',
        ),
    ],
)
def test_one_problem(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_all_problems_are_found_in_one_go() -> None:
    found = problems('[server]\nx = 1\n[limits]\ny = 2\n[[models]]\nname = ""\n')
    assert [line.split(": ")[0] for line in found] == ["c.toml:2", "c.toml:4", "c.toml:6", "c.toml:5"]


def test_a_key_like_no_other_lists_what_there_is() -> None:
    (problem,) = problems("[executor]\nqqq = 1\n" + MODEL)
    assert (
        problem == "c.toml:2: [executor] qqq: no such key; there are threads, spin_us, load_threads, policy"
    )


def test_broken_toml_names_the_line() -> None:
    (problem,) = problems('[server]\nlisten = ["a" "b"]\n')
    assert problem.startswith("c.toml: not valid TOML: ")
    assert "(at line 2, " in problem


def test_lines_are_found_in_the_right_one_of_several_models() -> None:
    text = (
        MODEL
        + "[models.batching]\nmax_batch_size = 4\n"
        + '[[models]]\nname = "b"\nbase_path = "x"\n[models.batching]\nmax_batch_size = -1\n'
    )
    assert problems(text) == [
        "c.toml:10: [models.batching] of b, max_batch_size = -1: expected a number of rows, 1 to 1000000"
    ]


def test_an_admin_socket_too_deep_for_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/" + "d" * 100)
    (problem,) = problems(MODEL)
    assert "[server] admin_socket: a unix socket's path has at most 107 bytes" in problem
    assert "set admin_socket to a shorter one" in problem
