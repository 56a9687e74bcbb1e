"""A JupyterLab of the tests, and a headless Chromium to look at it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.project import PROJECT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")

HOST = "localhost"


def checkout(folder: Path, *notebooks: str) -> Path:
    """Make a folder that is a project to its notebooks, so that running them in it changes nothing here."""
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (folder / "data").symlink_to(PROJECT / "data")
    for name in notebooks:
        shutil.copy(PROJECT / f"notebooks/{name}.ipynb", folder / "notebooks")
    return folder


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """Run a JupyterLab on a folder; yields its address, in which a {} stands for the path of a notebook."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = {
        "ServerApp.root_dir": str(folder),
        "ServerApp.open_browser": "False",
        "ServerApp.allow_root": "True",
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": "True",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", "--port-retries=0"]
    command += [f"--{name}={value}" for name, value in options.items()]
    (folder / "config/labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "config/labconfig/page_config.json").write_text(json.dumps(quiet))
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    with open(folder / "lab.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        _wait(f"http://{HOST}:{port}/api?token={token}", process, folder / "lab.log")
        yield f"http://{HOST}:{port}/lab/tree/{{}}?reset&token={token}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(address: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@contextmanager
def browser(**options: Any) -> Iterator[Any]:
    """Open a page in a headless Chromium; `options` as of ``Browser.new_page``."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _QUIET)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield chromium.new_page(**options)
        finally:
            chromium.close()
