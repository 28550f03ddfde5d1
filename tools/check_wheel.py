"""Tries a wheel as a user would: a clean environment, no compiler, no checkout, no system nghttp2.

    python tools/check_wheel.py WHEEL [--tensorflow 'tensorflow-cpu==2.16.*' | --without-tensorflow]

Installs the wheel into a virtual environment in a temporary folder, runs `fastserve version`, and makes
sure that the native modules use the libnghttp2 that came with the wheel. Then installs TensorFlow beside
it, exports a model, serves it, and compares a score over the network with what it must be.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60

LOADED_LIBRARIES = """
    import importlib, pathlib, fastserve._native
    for file in pathlib.Path(fastserve._native.__file__).parent.glob("*.cpython-*.so"):
        importlib.import_module("fastserve._native." + file.name.split(".")[0])
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    print(*sorted({line.split()[-1] for line in lines if "nghttp2" in line}), sep="\\n")
"""

EXPORT = """
    import sys, tensorflow as tf

    class HalfPlusTwo(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def score(self, x):
            return {"y": 0.5 * x + 2.0}

    model = HalfPlusTwo()
    tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": model.score})
"""

SCORE = """
    import sys, grpc, numpy as np, tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0])))
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(request, timeout=float(sys.argv[2]), wait_for_ready=True)
    print(*tf.make_ndarray(reply.outputs["y"]).tolist())
"""


class Environment:
    """A virtual environment, and commands in it that see nothing of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        keep = {"HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH"}
        keep |= {
            name
            for name in os.environ
            if name.startswith(("PIP_", "SSL_")) or name.lower().endswith("_proxy")
        }
        self.variables = {name: os.environ[name] for name in keep if name in os.environ}
        self.variables |= {"PATH": f"{self.bin}:/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(self, program: str, *args: str | Path) -> str:
        command = [self.bin / program, *args]
        done = subprocess.run(command, cwd=self.folder, env=self.variables, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"check_wheel: {program} exited {done.returncode}\n{done.stdout}")
        return done.stdout.strip()

    def python(self, code: str, *args: str | Path) -> str:
        return self.run("python", "-c", textwrap.dedent(code), *args)

    def install(self, *what: str | Path) -> None:
        self.run("python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *what)

    def start(self, program: str, *args: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self.bin / program, *args], cwd=self.folder, env=self.variables)


def expect(what: str, got: str, wanted: str) -> None:
    print(f"{what}: {got}")
    if got != wanted:
        raise SystemExit(f"check_wheel: {what} should be {wanted}")


def check_install(env: Environment, wheel: Path) -> None:
    env.install(wheel.resolve())
    print(env.run("fastserve", "version"))
    print(env.run("tensorflow_model_server", "--version"))
    libraries = env.python(LOADED_LIBRARIES).split()
    bundled = [path for path in libraries if path.startswith(str(env.folder))]
    if not libraries or libraries != bundled:
        raise SystemExit(f"check_wheel: libnghttp2 does not come from the wheel: {libraries or 'not loaded'}")
    print("libnghttp2:", *(Path(path).name for path in libraries))


def check_serving(env: Environment, tensorflow: str) -> None:
    env.install(tensorflow, "grpcio")
    major, minor = env.python("import tensorflow; print(tensorflow.__version__)").split(".")[:2]
    print(f"tensorflow: {major}.{minor}")
    env.install("--no-deps", f"tensorflow-serving-api<{major}.{int(minor) + 1}")
    env.python(EXPORT, env.folder / "half_plus_two" / "1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = env.folder / "config.toml"
    config.write_text(
        textwrap.dedent(f"""
            [server]
            listen = ["{address}"]
            state_dir = "{env.folder}/state"

            [[models]]
            name = "half_plus_two"
            base_path = "{env.folder}/half_plus_two"
        """)
    )
    daemon = env.start("fastserve", "serve", config)
    try:
        expect("scores", env.python(SCORE, address, str(START_TIMEOUT_S)), "2.5 3.0 4.5")
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            status = daemon.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            raise SystemExit("check_wheel: the daemon does not stop") from None
    expect("exit status after SIGTERM", str(status), "0")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tensorflow", metavar="REQUIREMENT", help="default: what fits this machine")
    parser.add_argument("--without-tensorflow", action="store_true", help="do not serve")
    args = parser.parse_args()
    fitting = subprocess.check_output([Path(__file__).with_name("tensorflow_package")], text=True).strip()
    with tempfile.TemporaryDirectory(prefix="fastserve-wheel-") as folder:
        env = Environment(Path(folder))
        check_install(env, args.wheel)
        if not args.without_tensorflow:
            check_serving(env, args.tensorflow or fitting)
    print(f"{args.wheel.name} works")


if __name__ == "__main__":
    main()
