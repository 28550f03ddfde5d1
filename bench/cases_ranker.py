"""The trained ranker: saturated with single rows, one request in flight, and with 100 rows a request."""

from __future__ import annotations

import statistics

import bare
from case import CONNECTIONS, SPIN_US, STREAMS, Bench, saturate, turn_ratio, verify
from drive import drive
from report import Row, spread
from servers import echo_server, serving


def ranker_saturated(bench: Bench) -> list[Row]:
    """One row per request, 8 connections x 16 streams, beside the echo server and the bare loop."""
    bodies = bench.bodies("ranker")
    rates: dict[str, list[float]] = {"echo": [], "0": [], str(SPIN_US): []}
    batches: dict[str, list[float]] = {"0": [], str(SPIN_US): []}
    bares: dict[str, list[float]] = {"0": [], str(SPIN_US): []}
    with (
        echo_server() as echo,
        serving([bench.served("ranker")], executor={"spin_us": 0}) as parked,
        serving([bench.served("ranker")], executor={"spin_us": SPIN_US}) as spinning,
    ):
        daemons = {"0": parked, str(SPIN_US): spinning}
        verified = [verify(daemon, "ranker") for daemon in daemons.values()]
        for number in range(bench.rounds):
            bench.say(f"round {number + 1} of {bench.rounds}: echo")
            got = saturate(echo, bodies, bench.window_s, echo=True)
            rates["echo"].append(got.per_s)
            for spin, daemon in daemons.items():
                bench.say(f"round {number + 1} of {bench.rounds}: fastserve, spin_us {spin}")
                before = daemon.counters("ranker")
                got = saturate(daemon.port, bodies, bench.window_s)
                counted = daemon.counters("ranker") - before
                counted.check(got.done)
                rates[spin].append(got.per_s)
                batches[spin].append(counted.mean_batch)
                bench.say(f"round {number + 1} of {bench.rounds}: bare loop")
                batch = max(1, round(counted.mean_batch))
                bares[spin].append(
                    bare.loop(
                        bench.model("ranker"), batch, bench.window_s / 2, bench.session_config
                    ).rows_per_s
                )
    rows = []
    for spin in daemons:
        parameters = {"spin_us": int(spin), "io_threads": 0, "connections": CONNECTIONS, "streams": STREAMS}
        samples = {
            "requests_per_s": rates[spin],
            "echo_requests_per_s": rates["echo"],
            "bare_rows_per_s": bares[spin],
            "mean_batch": batches[spin],
            "verified": verified,
        }
        to_echo = turn_ratio(rates[spin], rates["echo"])
        to_bare = turn_ratio(rates[spin], bares[spin])
        measured = f"{spread(rates[spin])} req/s, mean batch {statistics.median(batches[spin]):.0f}"
        name = "ranker, 1 row, 8 x 16"
        against = f"echo server {spread(rates['echo'])} req/s"
        rows.append(Row(name, parameters, measured, against, to_echo, ">= 8", to_echo >= 8.0, samples))
        against = f"bare loop {spread(bares[spin])} rows/s"
        rows.append(Row(name, parameters, measured, against, to_bare, ">= 0.5", to_bare >= 0.5, samples))
    return rows


def ranker_latency(bench: Bench) -> list[Row]:
    """One request in flight: medians of each of the 16 bodies, servers in turn."""
    bodies = bench.bodies("ranker")
    requests = 300 if bench.quick else 1500
    medians: dict[str, list[float]] = {"echo": [], "0": [], str(SPIN_US): []}
    tails: dict[str, list[float]] = {"echo": [], "0": [], str(SPIN_US): []}
    with (
        echo_server() as echo,
        serving([bench.served("ranker")], executor={"spin_us": 0}) as parked,
        serving([bench.served("ranker")], executor={"spin_us": SPIN_US}) as spinning,
    ):
        ports = {"echo": echo, "0": parked.port, str(SPIN_US): spinning.port}
        for port in ports.values():  # the first requests on a fresh server are slower
            drive(port, bodies[:1], connections=1, in_flight=1, requests=requests, echo=port == echo)
        for number, body in enumerate(bodies):
            bench.say(f"body {number + 1} of {len(bodies)}")
            for name, port in ports.items():
                got = drive(
                    port,
                    [body],
                    connections=1,
                    in_flight=1,
                    requests=requests,
                    warmup_s=0.1,
                    echo=name == "echo",
                )
                medians[name].append(got.quantile_us(0.5))
                tails[name].append(got.quantile_us(0.99))
    rows = []
    for spin, bar in (("0", 0.62), (str(SPIN_US), 0.45)):
        ratio = turn_ratio(medians[spin], medians["echo"])
        rows.append(
            Row(
                "ranker, 1 row, one in flight",
                {"spin_us": int(spin), "io_threads": 0, "connections": 1, "streams": 1, "requests": requests},
                f"median {spread(medians[spin])} us, p99 {statistics.median(tails[spin]):,.0f} us",
                f"echo server {spread(medians['echo'])} us",
                ratio,
                f"<= {bar}",
                ratio <= bar,
                {"median_us": medians[spin], "p99_us": tails[spin], "echo_median_us": medians["echo"]},
            )
        )
    return rows


def ranker_100_rows(bench: Bench) -> list[Row]:
    """100 rows per request, four connections with one request in flight each."""
    bodies = bench.bodies("ranker_100")
    rows = []
    with (
        serving([bench.served("ranker")], executor={"spin_us": 0}) as parked,
        serving([bench.served("ranker")], executor={"spin_us": SPIN_US}) as spinning,
    ):
        for spin, daemon in ((0, parked), (SPIN_US, spinning)):
            verified = verify(daemon, "ranker_100")
            rates, bares, batches = [], [], []
            for number in range(bench.rounds):
                bench.say(f"spin_us {spin}, round {number + 1} of {bench.rounds}")
                before = daemon.counters("ranker")
                got = drive(
                    daemon.port,
                    bodies,
                    connections=4,
                    in_flight=1,
                    seconds=bench.window_s,
                )
                counted = daemon.counters("ranker") - before
                counted.check(got.done)
                rates.append(got.per_s * bodies[0].rows)
                batches.append(counted.mean_batch)
                run = bare.loop(
                    bench.model("ranker"), round(counted.mean_batch), bench.window_s / 2, bench.session_config
                )
                bares.append(run.rows_per_s)
            ratio = turn_ratio(rates, bares)
            rows.append(
                Row(
                    "ranker, 100 rows, 4 in flight",
                    {
                        "spin_us": spin,
                        "io_threads": 0,
                        "connections": 4,
                        "streams": 1,
                        "rows": bodies[0].rows,
                    },
                    f"{spread(rates)} rows/s, mean batch {statistics.median(batches):.0f}",
                    f"bare loop {spread(bares)} rows/s",
                    ratio,
                    ">= 0.7",
                    ratio >= 0.7,
                    {
                        "rows_per_s": rates,
                        "bare_rows_per_s": bares,
                        "mean_batch": batches,
                        "verified": verified,
                    },
                )
            )
    return rows
