"""`olah-cli` that answers more of what the Hub is asked; runs in the environment that has olah.

The Hub answers `Range: bytes=FIRST-LAST`, and a Parquet file is streamed that way. olah 0.5.4 sends the whole of a file
that lies in a repository on its own disk, whatever part was asked for. It also knows nothing of such a repository where
no revision is named, as when `diffusers` loads a model.
"""

import re

from olah import server


class Ranges:
    """ASGI middleware: cuts what was asked for out of what is answered."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        asked = dict(scope.get("headers", [])).get(b"range", b"") if scope.get("method") == "GET" else b""
        part = re.fullmatch(rb"bytes=(\d+)-(\d*)", asked)
        if not part:
            await self.app(scope, receive, send)
            return
        messages = []

        async def keep(message):
            messages.append(message)

        await self.app(scope, receive, keep)
        start = messages[0]
        body = b"".join(message.get("body", b"") for message in messages[1:])
        if start["status"] == 200:
            first, last = int(part[1]), min(int(part[2] or len(body) - 1), len(body) - 1)
            where = b"bytes %d-%d/%d" % (first, last, len(body))
            body = body[first : last + 1]
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            headers += [(b"content-range", where), (b"content-length", b"%d" % len(body))]
            start = {**start, "status": 206, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})


class Main:
    """ASGI middleware: a repository whose revision is not named is its branch `main`."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if re.fullmatch(r"/api/(models|datasets|spaces)/[^/]+/[^/]+", scope.get("path", "")):
            scope = {**scope, "path": f"{scope['path']}/revision/main"}
        await self.app(scope, receive, send)


if __name__ == "__main__":
    server.app.add_middleware(Ranges)
    server.app.add_middleware(Main)
    server.cli()
