"""A page as Chromium shows it: the real browser, headless, spoken to over its debugging socket."""

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.services import die_with_parent, stop_process

START_S = 60
_FACTS = """({
    title: document.title,
    text: document.body.innerText,
    headings: [...document.querySelectorAll("h2")].map(h => h.textContent),
    images: [...document.images].map(i => [i.alt, i.complete ? i.naturalWidth : 0]),
    overflow: document.documentElement.scrollWidth - innerWidth,
})"""


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page."""

    facts: dict[str, Any]
    requests: list[str]
    """URLs of all that was asked for."""
    complaints: list[str]
    """What stands in its console."""
    screenshot: bytes


def executable() -> str:
    """Chromium; without it the test is skipped, or fails where CI has to have installed it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail("there is no chromium; .ci/run installs it")
    pytest.skip("there is no chromium; apt-get install chromium")


def look_at(path: Path, *, width: int) -> Seen:
    """Open a local page in a window of this width."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [executable(), "--headless=new", "--no-sandbox", "--disable-gpu"]
        command += ["--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run"]
        command += ["--disable-background-networking", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
        )
        try:
            return asyncio.run(_look(Path(profile, "DevToolsActivePort"), path.as_uri(), width))
        finally:
            stop_process(browser)


async def _look(port_file: Path, url: str, width: int) -> Seen:
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
        while not (port_file.exists() and port_file.read_text().count("\n")):
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with session.get(f"http://127.0.0.1:{port}/json") as response:
            pages = [page for page in await response.json() if page["type"] == "page"]
        address = pages[0]["webSocketDebuggerUrl"]
        async with session.ws_connect(address, max_msg_size=2**27) as socket:
            return await _visit(socket, url, width)


async def _visit(socket: aiohttp.ClientWebSocketResponse, url: str, width: int) -> Seen:
    events: list[dict[str, Any]] = []
    numbers = itertools.count(1)

    async def receive() -> dict[str, Any]:
        message: dict[str, Any] = await socket.receive_json()
        events.append(message)
        return message

    async def call(method: str, **params: Any) -> dict[str, Any]:
        number = next(numbers)
        await socket.send_json({"id": number, "method": method, "params": params})
        while (message := await receive()).get("id") != number:
            continue
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    for domain in ("Page", "Network", "Log", "Runtime"):
        await call(f"{domain}.enable")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    await call("Emulation.setDeviceMetricsOverride", **size)
    await call("Page.navigate", url=url)
    while (await receive()).get("method") != "Page.loadEventFired":
        continue
    found = await call("Runtime.evaluate", expression=_FACTS, returnByValue=True)
    shot = await call("Page.captureScreenshot", captureBeyondViewport=True)
    said = [event for event in events if event.get("method") == "Log.entryAdded"]
    sent = [event for event in events if event.get("method") == "Network.requestWillBeSent"]
    return Seen(
        facts=found["result"]["value"],
        requests=[event["params"]["request"]["url"] for event in sent],
        complaints=[event["params"]["entry"]["text"] for event in said],
        screenshot=base64.b64decode(shot["data"]),
    )
