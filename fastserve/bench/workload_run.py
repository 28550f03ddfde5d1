"""A workload from its file to what was found: model, requests, targets, verification, measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fastserve.bench.ask import ask, ask_signature
from fastserve.bench.child import Child
from fastserve.bench.export import export
from fastserve.bench.measure import Bodies, Generator, encode, replay_log
from fastserve.bench.requests import Log, Request, make_requests, read_log
from fastserve.bench.result import Run, Sent, TargetInfo
from fastserve.bench.runner import Measured, Observer, Runner
from fastserve.bench.start import started, version_directory
from fastserve.bench.target import Plan, Target, TargetError
from fastserve.bench.verify import compare_answers
from fastserve.bench.workload import Workload
from fastserve.errors import FastServeError
from fastserve.savedmodel import SavedModelError, Signature, read

VERIFIED = 4


@dataclass(frozen=True)
class Settings:
    """What a run takes besides its workload. say: told what goes on, in a few words."""

    targets: Sequence[Target]
    plans: Sequence[Plan]
    generate: Generator
    observer: Observer
    say: Callable[[str], None]
    verify: bool = True


@dataclass(frozen=True)
class Model:
    """What is served. saved_model: None when only servers know it."""

    saved_model: Path | None
    recorded: Path | None
    signature: Signature | None


def run_workload(workload: Workload, settings: Settings) -> Run:
    """Starts what is to be started, verifies, measures, and ends what it started.

    Raises FastServeError when nothing could be measured.
    """
    model = find_model(workload, settings.say)
    if settings.plans and model.saved_model is None:
        raise TargetError(
            f"{workload.path or workload.name}: --start needs the model itself: "
            "name export or saved_model in [workload]"
        )
    with ExitStack() as stack:
        targets = list(settings.targets)
        children = []
        for plan in settings.plans:
            assert model.saved_model is not None
            settings.say(f"{workload.name}: starting {plan.name}")
            about = workload.workload
            target, child = stack.enter_context(
                started(plan, workload.model, model.saved_model, about.signature, workload.serve)
            )
            targets.append(target)
            children.append(child)
        return _measure(workload, model, targets, children, settings)


def find_model(workload: Workload, say: Callable[[str], None]) -> Model:
    """The model of a workload and its signature. Raises FastServeError."""
    about = workload.workload
    recorded = None
    if about.export:
        say(f"{workload.name}: exporting the model, unless it is there")
        exported = export(Path(about.export))
        path, recorded = exported.base_path, exported.recorded
    elif about.saved_model:
        path = Path(about.saved_model)
    else:
        return Model(None, None, None)
    saved = read(version_directory(path))
    signature = saved.signature(about.signature)
    if signature is None:
        there = ", ".join(signature.name for signature in saved.signatures)
        raise SavedModelError(f"{path}: has no signature {about.signature}; it has {there}")
    return Model(path, recorded, signature)


def _measure(
    workload: Workload, model: Model, targets: list[Target], children: list[Child], settings: Settings
) -> Run:
    about = workload.workload
    signature = model.signature
    if signature is None and workload.requests.source != "rows":
        settings.say(f"{workload.name}: asking {targets[0].name} for the signature")
        signature = ask_signature(targets[0], workload.model, about.signature)
    requests = make_requests(workload.requests, signature, model.recorded)
    protocols = {target.protocol for target in targets}
    bodies = encode(requests, workload.model, about.signature, protocols)
    log = None
    log_bodies: Bodies | None = None
    if workload.replay is not None:
        log = replay_log(read_log(Path(workload.replay.file), signature), workload.replay.speed)
        log_bodies = encode(log.requests, workload.model, about.signature, protocols)
    verified = _verify(workload, targets, requests, log, settings)

    def check() -> None:
        for child in children:
            child.check()

    runner = Runner(
        targets=targets,
        bodies=bodies,
        load=workload.load,
        generate=settings.generate,
        observer=settings.observer,
        check=check,
        seed=workload.requests.seed,
        replay=workload.replay,
        log=log,
        log_bodies=log_bodies,
    )
    measured = runner.run()
    if not measured.windows and measured.ended and measured.ended != "interrupted":
        raise FastServeError(measured.ended)
    return _run(workload, targets, requests, bodies, measured, verified)


def _verify(
    workload: Workload, targets: list[Target], requests: list[Request], log: Log | None, settings: Settings
) -> int:
    """Every target answers the first requests, and all alike; how many were compared."""
    about = workload.workload
    chosen = (log.requests if log else requests)[:VERIFIED]
    for number, request in enumerate(chosen):
        settings.say(f"{workload.name}: comparing answers, {number + 1} of {len(chosen)}")
        answers = [(target.name, ask(target, workload.model, about.signature, request)) for target in targets]
        if settings.verify and about.rtol >= 0:
            compare_answers(answers, about.rtol, about.atol, number)
    return len(chosen) if settings.verify and about.rtol >= 0 and len(targets) > 1 else 0


def _run(
    workload: Workload,
    targets: Sequence[Target],
    requests: Sequence[Request],
    bodies: Bodies,
    measured: Measured,
    verified: int,
) -> Run:
    rows = [request.rows for request in requests]
    load = workload.load
    return Run(
        name=workload.name,
        title=workload.title,
        model=workload.model,
        signature=workload.workload.signature,
        requests=Sent(
            source=workload.requests.source,
            count=len(requests),
            rows=(min(rows), max(rows)),
            body_bytes=bodies.sizes(),
            seed=workload.requests.seed,
        ),
        window_s=load.window_s,
        warmup_s=load.warmup_s,
        rounds=load.rounds,
        targets=[
            TargetInfo(
                name=target.name,
                kind=target.kind,
                protocol=target.protocol,
                address=target.authority,
                options=target.options,
            )
            for target in targets
        ],
        points=measured.points,
        windows=measured.windows,
        found=measured.found,
        complete=not measured.ended,
        ended=measured.ended,
        verified=verified,
    )
