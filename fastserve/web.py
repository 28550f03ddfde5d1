"""What a route's Python file works with: the request, the answer, and calls of models.

A route ([[routes]] in the configuration) names a file with two functions, plain or async:

    from fastserve.web import BadRequest, Request

    def preprocess(request: Request):
        rows = request.json()["rows"]
        if not rows:
            raise BadRequest("rows is empty")
        return {"dense": np.array(rows, np.float32)}

    def postprocess(outputs, request: Request):
        return {"scores": outputs["score"]}

`preprocess` gives the inputs of the route's model, as `fastserve.client` takes them: a dict of arrays. It may
also give a `Call`, which names a model of its own, or a list of them, which are made at the same time; or a
`Response`, which is the answer already. `postprocess` gets what the model gave, a dict of arrays (a list of
such for a list of calls), and gives the answer: a dict or a list, which become JSON (arrays in it are
allowed), text, bytes, or a `Response`. `setup()`, where the file has it, runs once in each worker before its
first request.

What a hook raises: `BadRequest` is answered with its message and status. A ValueError out of `preprocess`
means that the request cannot be used, and is answered with 400 and its text. A model's refusal is answered as
the REST API does. Anything else is a defect: 500 without details; the traceback goes to the log.

Runs in the worker processes of the gateway, and in tests of such files, for which a Request can be made by
hand. Importing this imports neither numpy nor Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BadRequest", "Call", "Request", "Response", "Upload", "Values"]

T = TypeVar("T")

# Of a query or a form that is not multipart.
_MAX_FIELDS = 1000
# What an image may have once it is decoded: 50 megapixels are 150 MB of RGB.
MAX_PIXELS = 50_000_000
_CHARSET = re.compile(r'charset\s*=\s*"?([\w.:+-]+)', re.ASCII | re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class BadRequest(Exception):
    """A request that cannot be answered, by the client's fault. `message`: text, or what has a text, such as
    an exception. `status`: 400 to 599."""

    # Of a subclass whose __init__ does not come here.
    message = "the request cannot be answered"
    status = 400

    def __init__(self, message: object, status: int = 400) -> None:
        if not 400 <= status <= 599:
            raise TypeError(f"BadRequest: status is 400 to 599, not {status!r}")
        super().__init__(message)
        self.message = str(message)
        self.status = int(status)


@dataclass(frozen=True)
class Upload:
    """A file of a multipart form."""

    name: str
    filename: str
    content_type: str
    data: bytes

    def image(self, *, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> Image:
        """As Request.image."""
        from fastserve.web_image import open_image

        return open_image(self.data, mode, max_pixels)


class Values(Mapping[str, T], Generic[T]):
    """Names with one or more values each, in their order. As a mapping: the first value of each."""

    def __init__(self, pairs: Iterable[tuple[str, T]] = ()) -> None:
        self._values: dict[str, list[T]] = {}
        for name, value in pairs:
            self._values.setdefault(self._key(name), []).append(value)

    def __getitem__(self, name: str) -> T:
        return self._values[self._key(name)][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) in self._values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.pairs())!r})"

    def all(self, name: str) -> list[T]:
        """All values of a name, none when it is not there."""
        return list(self._values.get(self._key(name), ()))

    def pairs(self) -> Iterator[tuple[str, T]]:
        """Every value with its name."""
        return ((name, value) for name, values in self._values.items() for value in values)

    @staticmethod
    def _key(name: str) -> str:
        return name


class Headers(Values[str]):
    """Headers by name, whose case does not count."""

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()


@dataclass(frozen=True)
class Call:
    """One call of a model. `inputs`: arrays by name. Not said: the route's version, label and signature, if
    it is the route's model, otherwise what the model serves by default."""

    model: str
    inputs: Mapping[str, Any]
    version: int | None = None
    label: str | None = None
    signature: str | None = None
    outputs: Iterable[str] | None = None


@dataclass(frozen=True)
class Response:
    """An answer with all that can be said of it. `body` as `postprocess` may return it; `content_type` by the
    body, unless it is given."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.body, Response):
            raise TypeError("Response: its body is another Response")
        if isinstance(self.status, bool) or not isinstance(self.status, int) or not 200 <= self.status <= 599:
            # No ValueError: out of preprocess that would be the client's fault.
            raise TypeError(f"Response: status is 200 to 599, not {self.status!r}")
        given = dict(self.headers)
        if self.content_type is not None:
            given["content-type"] = self.content_type
        for name, value in given.items():
            if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
                raise TypeError(f"Response: {name!r} is no header's name")
            if not isinstance(value, str) or not all(char == "\t" or char.isprintable() for char in value):
                raise TypeError(f"Response: header {name}: {value!r} is no text of one line")


class Predict(Protocol):
    """How a Request calls models."""

    def __call__(self, call: Call) -> Awaitable[Mapping[str, Any]]: ...


class Request:
    """One HTTP request, whole. What cannot be parsed raises BadRequest, which a hook may leave alone.

    method, path: as the client sent them, the path without its query and with %XX decoded;
    query, headers: Values, the headers' names in any case; body: bytes; remote: the client's address;
    state: a dict of the hooks' own, to hand something from `preprocess` to `postprocess`;
    rows: how many rows the model was asked for (0 before that).
    """

    __slots__ = ("_form", "_predict", "body", "headers", "method", "path", "query", "remote", "rows", "state")

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        *,
        query: str | Mapping[str, str] = "",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        remote: str = "",
        predict: Predict | None = None,
    ) -> None:
        """`query`: as it stands in the URL, or by name. BadRequest when it has too many fields."""
        self.method = method
        self.path = path
        self.query: Values[str] = Values(_fields(query) if isinstance(query, str) else query.items())
        self.headers = Headers(headers.items() if isinstance(headers, Mapping) else headers)
        self.body = body
        self.remote = remote
        self.state: dict[str, Any] = {}
        self.rows = 0
        self._form: Values[str | Upload] | None = None
        self._predict = predict

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}, {len(self.body)} bytes>"

    @property
    def content_type(self) -> str:
        """The body's media type in lower case, without parameters; "" when the client did not say."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON, whatever its content type says."""
        import orjson

        if not self.body.strip():
            raise BadRequest("the body is empty where JSON is expected")
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from None

    def text(self) -> str:
        """The body as text, by the charset of its content type, otherwise UTF-8."""
        charset = _CHARSET.search(self.headers.get("content-type", ""))
        return _decode(self.body, charset[1] if charset else "utf-8")

    def form(self) -> Values[str | Upload]:
        """The fields of a form, urlencoded or multipart. Files are Uploads."""
        if self._form is None:
            kind = self.content_type
            if kind == "application/x-www-form-urlencoded":
                self._form = Values(_fields(_decode(self.body, "utf-8")))
            elif kind == "multipart/form-data":
                from fastserve.web_form import parse_multipart

                self._form = Values(parse_multipart(self.headers["content-type"], self.body))
            else:
                raise BadRequest(
                    "a form is expected: application/x-www-form-urlencoded or multipart/form-data, "
                    f"not {kind or 'a body without a content type'}",
                    415,
                )
        return self._form

    def image(self, name: str = "", *, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> Image:
        """The body, or a file of a multipart form (the one called `name`, otherwise the first), as an image
        in Pillow's `mode`: JPEG, PNG, WebP, GIF, BMP, TIFF, JPEG 2000, PPM, and AVIF where Pillow has it. One
        of more than `max_pixels` is refused before it is decoded. ImportError without Pillow."""
        from fastserve.web_image import open_image

        return open_image(self._file(name), mode, max_pixels)

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        outputs: Iterable[str] | None = None,
    ) -> Mapping[str, Any]:
        """The outputs of a model, for async hooks that need one model's answer to ask the next. The client's
        credentials, trace and time limit go with it. A refusal raises fastserve.client.RpcError."""
        if self._predict is None:
            raise RuntimeError("this Request was made by hand, without predict=: there is no server to ask")
        return await self._predict(Call(model, inputs, version, label, signature, outputs))

    def _file(self, name: str) -> bytes:
        if self.content_type != "multipart/form-data":
            return self.body
        uploads = [value for _, value in self.form().pairs() if isinstance(value, Upload)]
        for upload in uploads:
            if upload.name == name or not name:
                return upload.data
        there = ", ".join(upload.name for upload in uploads) or "none"
        raise BadRequest(f"the form has no file{f' called {name}' if name else ''}; its files: {there}")


# A hook: preprocess(request) or postprocess(outputs, request), plain or async.
Hook = Callable[..., Any]


def _fields(text: str) -> list[tuple[str, str]]:
    """Of a query or an urlencoded form."""
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("a field is not UTF-8") from None
    except ValueError:
        raise BadRequest(f"there are more than {_MAX_FIELDS} fields") from None


def _decode(data: bytes, charset: str) -> str:
    try:
        return data.decode(charset)
    except LookupError:
        raise BadRequest(f"the charset {charset!r} is not known", 415) from None
    except (UnicodeDecodeError, ValueError):
        raise BadRequest(f"the body is not {charset}") from None
