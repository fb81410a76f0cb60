"""Other gateways that people use, for comparison: each is installed into a directory of its own under build/.

LiteLLM's proxy (PyPI, one worker, no database), Portkey's gateway (npm), vllm-router (PyPI; a router of model
servers, without keys or money). BENCH_OTHERS names those to measure, separated by commas; "no" measures none.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.ports import free_port
from tests.support.stack import REPOSITORY
from tests.tools.bench.gateway_targets import Target, Targets, start
from tests.tools.bench.world import progress

_BUILD = REPOSITORY / "build"
_START_SECONDS = 180.0


async def add_others(made: Targets) -> list[str]:
    """Start the others; returns why some of them are not measured."""
    wanted = [name.strip() for name in os.environ.get("BENCH_OTHERS", ",".join(_OTHERS)).split(",")]
    missing = []
    for name, begin in _OTHERS.items():
        if name not in wanted:
            continue
        try:
            made.found.append(await asyncio.to_thread(begin, made))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            missing.append(f"{name} was not measured: {' '.join(str(error).split())[-300:]}")
    return missing


def _litellm(made: Targets) -> Target:
    """LiteLLM's proxy, one worker, no database."""
    program = _from_pypi("litellm", "litellm[proxy]", "litellm")
    port, token = free_port(), f"sk-{secrets.token_hex(32)}"
    parameters = {
        "model": "openai/m",
        "api_base": f"http://127.0.0.1:{made.upstream}/v1",
        "api_key": "x",
    }
    config = made.directory / "litellm.yaml"
    models = [{"model_name": "chat", "litellm_params": parameters}]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": token}}))
    arguments = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    log = made.directory / "litellm.log"
    pid = start(made.stack, [*arguments, "--num_workers", "1"], log, port, _START_SECONDS)
    return Target("LiteLLM", port, {"Python": pid}, token)


def _portkey(made: Targets) -> Target:
    """Portkey's gateway, which reads its upstream from headers."""
    directory = _BUILD / "portkey"
    program = directory / "node_modules/@portkey-ai/gateway/build/start-server.js"
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise RuntimeError("node and npm are not installed")
    if not program.exists():
        progress("installing Portkey's gateway into build/portkey")
        directory.mkdir(parents=True, exist_ok=True)
        _install([npm, "install", "--silent", "--prefix", str(directory), "@portkey-ai/gateway"])
    port = free_port()
    log = made.directory / "portkey.log"
    pid = start(made.stack, [node, str(program), f"--port={port}", "--headless"], log, port, _START_SECONDS)
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{made.upstream}/v1",
    }
    return Target("Portkey", port, {"Node": pid}, headers=headers)


def _vllm_router(made: Targets) -> Target:
    """vllm-router before one model server."""
    program = _from_pypi("vllm-router", "vllm-router", "vllm-router")
    port, metrics = free_port(), free_port()
    arguments = [
        *(str(program), "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{made.upstream}", "--policy", "round_robin"),
        *("--prometheus-port", str(metrics), "--log-level", "error"),
    ]
    pid = start(made.stack, arguments, made.directory / "vllm-router.log", port, _START_SECONDS)
    return Target("vllm-router", port, {"Rust": pid})


_OTHERS: dict[str, Callable[[Targets], Target]] = {
    "LiteLLM": _litellm,
    "Portkey": _portkey,
    "vllm-router": _vllm_router,
}


def _from_pypi(name: str, requirement: str, program: str) -> Path:
    """A program of a package, in a virtual environment of its own."""
    environment = _BUILD / name
    path = environment / "bin" / program
    if not path.exists():
        progress(f"installing {name} into build/{name}")
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        _install([str(environment / "bin/python"), "-m", "pip", "install", "--quiet", requirement])
    return path


def _install(arguments: list[str]) -> None:
    """Run an installer. Raises RuntimeError with what it wrote."""
    installed = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        raise RuntimeError(f"{arguments[0]} could not install it: {installed.stderr.strip()[-300:]}")
