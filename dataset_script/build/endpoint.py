"""A model behind an OpenAI-compatible endpoint: images as data URLs, requests side by side, retries with back-off."""

import base64
import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..files import encode_image
from .annotations import Reject

KEY = "OPENAI_API_KEY"  # environment variable; sent to the endpoint, and kept out of all that is written
MAX_REPLY = 1 << 20  # bytes
LONGEST_WAIT = 60.0  # seconds between two tries
# So many images refused before one is answered: not the images are at fault.
MAX_REFUSED = 20
# The server's answer to this request, not its state: an image refused, or a reply that makes no sense.
REFUSALS = (400, 413, 415, 422)
BUSY = (408, 425, 429, 502, 503, 504)


@dataclass(frozen=True)
class Endpoint:
    """A model at URL/chat/completions.

    Args:
        url: up to and with /v1.
        model: its name there.
        concurrency: requests at once.
        max_new_tokens: of an answer.
        timeout: seconds without a byte after which a request is given up.
        tries: of a request, before the server is taken for dead.
        first_wait: seconds before the second try; twice as long before each further one.
    """

    url: str
    model: str
    concurrency: int = 8
    max_new_tokens: int = 32
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0

    def settings(self) -> list:
        """What the answers depend on."""
        return ["endpoint", self.url, self.model, self.max_new_tokens]

    def load(self) -> "_RemoteModel":
        """The model."""
        return _RemoteModel(self)


class _Retry(Exception):
    """The server is busy, or out of order for a moment.

    Args:
        reason: to be named if it stays so.
        wait: seconds that the server asks for, or None.
        of_request: the server may fail on this request alone.
    """

    def __init__(self, reason: str, wait: float | None = None, of_request: bool = False):
        super().__init__(reason)
        self.wait, self.of_request = wait, of_request


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key is for nobody else."""

    def redirect_request(self, *arguments):
        return None


class _RemoteModel:
    """Asks the endpoint; stops with ConnectionError where it is dead or wants no questions of ours."""

    def __init__(self, spec: Endpoint):
        self.spec = spec
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._answered, self._refused, self._cause = 0, 0, None

    def __call__(self, prompts: Sequence, question: str) -> list[str | Reject]:
        """The answers; why not, for a prompt that cannot be shown or that the server refuses."""
        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            asked = [pool.submit(self._answer, show, question) for show in prompts]
            try:
                return [future.result() for future in asked]
            except BaseException:
                self._stopped.set()  # wakes those that wait
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, show, question: str) -> str | Reject:
        try:
            body = self._request(show(), question)
        except Reject as reason:
            return reason
        answered_before = self._answered
        for number in range(self.spec.tries):
            if self._stopped.is_set():
                raise self._cause or ConnectionError(f"model: {self.spec.url}: stopped")
            try:
                answer = self._ask(body)
            except Reject as reason:
                self._count_refusal(reason)
                return reason
            except _Retry as retry:
                last = retry
                if number + 1 < self.spec.tries:
                    self._stopped.wait(self._wait(number, retry))
            except ConnectionError as error:
                raise self._stop(error) from None
            else:
                with self._lock:
                    self._answered += 1
                return answer
        if last.of_request and self._answered > answered_before:  # others were answered meanwhile
            return Reject(f"answer: {last}, {self.spec.tries} times")
        error = ConnectionError(f"model: {self.spec.url} does not answer, after {self.spec.tries} tries: {last}")
        raise self._stop(error)

    def _stop(self, error: ConnectionError) -> ConnectionError:
        """No request is begun any more. Returns the error that came first, for every thread to raise."""
        with self._lock:
            self._cause = self._cause or error
            self._stopped.set()
            return self._cause

    def _wait(self, number: int, retry: _Retry) -> float:
        """Seconds: as the server says, or longer each time, and not all requests at the same moment."""
        longest = min(self.spec.first_wait * 2**number, LONGEST_WAIT)
        return min(retry.wait, LONGEST_WAIT) if retry.wait is not None else longest * random.uniform(0.5, 1)

    def _count_refusal(self, reason: Reject) -> None:
        with self._lock:
            self._refused += 1
            if self._answered or self._refused < MAX_REFUSED:
                return
        raise self._stop(
            ConnectionError(f"model: {self.spec.url} refuses every image, {self._refused} so far; the last: {reason}")
        )

    def _request(self, images: Sequence, question: str) -> bytes:
        pictures = [base64.b64encode(encode_image(image)).decode() for image in images]
        content = [
            *({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}} for picture in pictures),
            {"type": "text", "text": question},
        ]
        return json.dumps(
            {
                "model": self.spec.model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self.spec.max_new_tokens,
                "temperature": 0,
            }
        ).encode()

    def _ask(self, body: bytes) -> str:
        """One try.

        Raises:
            Reject: this image is refused. _Retry: another try may go better. ConnectionError: none will.
        """
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(f"{self.spec.url}/chat/completions", body, headers)
        try:
            with self._open(request, timeout=self.spec.timeout) as reply:
                data = reply.read(MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            raise self._failure(error) from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            raise _Retry(f"{type(error).__name__}: {_hidden(error)}") from None
        return _read_reply(data)

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status other than 200 means."""
        try:
            text = " ".join(error.read(MAX_REPLY).decode(errors="replace").split())
        except (OSError, http.client.HTTPException):
            text = ""
        reason = f"HTTP {error.code}: {_hidden(text)[:300] or error.reason}"
        if error.code in REFUSALS:
            return Reject(f"answer: refused, {reason}")
        if error.code in BUSY or error.code >= 500:
            after = error.headers.get("Retry-After") or ""
            return _Retry(reason, float(after) if after.isdecimal() else None, of_request=error.code not in BUSY)
        return ConnectionError(f"model: {self.spec.url} refuses to answer, {reason}")


def _read_reply(data: bytes) -> str:
    """The text of a completion.

    Raises:
        Reject: the model refused. _Retry: it is no completion.
    """
    try:
        message = json.loads(data)["choices"][0]["message"]
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise _Retry(f"got {_hidden(data[:100].decode(errors='replace'))!r}, no completion", of_request=True) from None
    if refusal and not content:
        raise Reject(f"answer: refused, {_hidden(refusal)[:300]}")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise Reject("answer: refused, the reply has no content")
    return content.encode(errors="replace").decode().strip()


def _hidden(text: object) -> str:
    """What a server says, without the key if it should repeat it."""
    key = os.environ.get(KEY)
    return str(text).replace(key, "***") if key else str(text)
