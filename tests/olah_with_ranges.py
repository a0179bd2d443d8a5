"""`olah-cli` that also answers requests for a part of a file; runs in the environment that has olah.

The Hub answers `Range: bytes=FIRST-LAST`, and a Parquet file is streamed that way. olah 0.5.4 sends the whole of a file
that lies in a repository on its own disk, whatever part was asked for.
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


if __name__ == "__main__":
    server.app.add_middleware(Ranges)
    server.cli()
