"""`farebox simulator` as the samples start it: the command line of a pod, a call, SIGTERM."""

import asyncio
import signal
import sys
from typing import Any

import openai
import pytest

from tests.manifests.trees import SAMPLES, kinds
from tests.support.ports import free_port

MODELS = kinds(SAMPLES, "Model")


async def listening(port: int, process: asyncio.subprocess.Process) -> None:
    """Returns once the port takes connections; fails if the process ends first."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    pytest.fail(f"the simulator ended with {process.returncode}")


@pytest.mark.parametrize("model", MODELS, ids=[model["metadata"]["name"] for model in MODELS])
async def test_a_sample_models_command_serves_and_ends_on_sigterm_after_running_streams(
    model: dict[str, Any],
) -> None:
    served_name = str(model["spec"]["servedName"])
    (container,) = model["spec"]["serving"]["deployment"]["template"]["spec"]["containers"]
    port = free_port()
    args = [arg if not arg.startswith("--port=") else f"--port={port}" for arg in container["args"]]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "farebox", *args)
    try:
        await listening(port, process)
        base = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
            assert [item.id async for item in client.models.list()] == [served_name]
            stream = await client.chat.completions.create(
                model=served_name,
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=10,
                stream=True,
                stream_options={"include_usage": True},
            )
            process.send_signal(signal.SIGTERM)
            *_, last = [chunk async for chunk in stream]
        assert last.usage is not None
        assert last.usage.completion_tokens == 10
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
