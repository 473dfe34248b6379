"""What vLLM's server answers, without a port."""

import asyncio


def answer(path):
    """Return the body that a GET of `path` gets from an app with vLLM's metrics routes."""
    import fastapi
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router

    app = fastapi.FastAPI()
    attach_router(app)
    return asyncio.run(_get(app, path))


async def _get(app, path):
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(each.get("body", b"") for each in sent).decode()
