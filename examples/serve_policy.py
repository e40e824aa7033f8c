"""Serves an exported policy over HTTP with Ray Serve (pip install 'rllib_calql[serve]').

calql export CHECKPOINT --format torch --out policy.pt2
python examples/serve_policy.py policy.pt2
curl localhost:8000 -d '[[0.1, -0.2, 0.3]]'     # a list of observations to a list of actions
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


class PolicyServer:
    def __init__(self, file: str) -> None:
        self.policy = torch.export.load(file).module()

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            return JSONResponse(self.policy(torch.tensor(await request.json(), dtype=torch.float32)).tolist())
        except Exception as error:  # no JSON, no numbers, or of another size
            return JSONResponse({"error": str(error)}, status_code=422)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    serve.run(serve.deployment(PolicyServer).bind(str(options.file.resolve())), blocking=True)


if __name__ == "__main__":
    main()
