"""Makes the pictures of Prefect's UI in docs/images, from a server that has a run and a deployment.

    PYTHONPATH=. .venv/bin/python docs/screenshots.py http://127.0.0.1:4200 PIPELINE

`fastroai up` starts such a server. It needs Debian's Chromium: `apt install chromium`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.support.browser import open_page

IMAGES = Path(__file__).parent / "images"
UIS = {"v1": "", "v2": "/v2"}
SETTLED = 4.0
"""Seconds for what moves into its place after it is there."""


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    """What the server's API answers."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/api{path}", json.dumps(body).encode(), headers)
    with urlopen(request) as answer:
        return json.load(answer)


def main(url: str, pipeline: str) -> None:
    of_flow = {"flows": {"name": {"any_": [pipeline]}}}
    ended = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    [run] = ask(url, "/flow_runs/filter", of_flow | ended | {"sort": "END_TIME_DESC", "limit": 1})
    pages = {
        "run": (f"/runs/flow-run/{run['id']}", run["name"]),
        "costs": ("/artifacts/key/costs", "Last runs"),
    }
    for deployment in ask(url, "/deployments/filter", {"limit": 1}):
        pages["form"] = (f"/deployments/deployment/{deployment['id']}/run", "Submit")
    IMAGES.mkdir(exist_ok=True)
    with open_page(1200, 800) as page:
        for ui, base in UIS.items():
            for name, (path, text) in pages.items():
                page.open(f"{url}{base}{path}")
                page.wait_for_text(text)
                time.sleep(SETTLED)
                page.screenshot(IMAGES / f"prefect-{name}-{ui}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
