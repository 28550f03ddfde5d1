"""fastserve.web: what a hook reads from a request, and what it is told when it cannot."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fastserve.web import BadRequest, Call, Headers, Request, Response, Upload, Values

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(headers: str, body: bytes) -> bytes:
    return f"--{BOUNDARY}\r\n{headers}\r\n\r\n".encode() + body + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
TEXT = part('Content-Disposition: form-data; name="title"', "Käse".encode())
FILE = part(
    'Content-Disposition: form-data; name="photo"; filename="a b.jpg"\r\nContent-Type: image/jpeg',
    b"\xff\xd8\r\n--not the boundary\r\n\x00",
)


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "PNG")
    return out.getvalue()


def refused(request: Request, what: str = "form") -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        getattr(request, what)()
    return caught.value


# ---- values and headers ------------------------------------------------------------------------------------


def test_values_have_a_first_and_all_in_their_order() -> None:
    values = Values([("a", 1), ("b", 2), ("a", 3)])
    assert values["a"] == 1 and values.all("a") == [1, 3] and values.all("c") == []
    assert list(values) == ["a", "b"] and len(values) == 2 and "c" not in values
    assert list(values.pairs()) == [("a", 1), ("a", 3), ("b", 2)]
    assert values.get("c") is None


def test_the_case_of_a_header_does_not_count() -> None:
    headers = Headers([("Content-Type", "text/plain"), ("X-A", "1"), ("x-a", "2")])
    assert headers["content-type"] == headers["CONTENT-TYPE"] == "text/plain"
    assert headers.all("X-a") == ["1", "2"]
    assert "x-A" in headers and 3 not in headers


def test_a_query_is_decoded() -> None:
    request = Request("GET", "/rank", query="user=J%C3%BCrgen+K&tag=a&tag=&flag")
    assert request.query["user"] == "Jürgen K"
    assert request.query.all("tag") == ["a", ""]
    assert request.query["flag"] == ""
    assert Request(query={"a": "b&c"}).query["a"] == "b&c"


def test_a_query_of_too_many_fields_or_of_no_text_is_refused() -> None:
    with pytest.raises(BadRequest, match="more than 1000 fields"):
        Request(query="&".join("a=1" for _ in range(1001)))
    with pytest.raises(BadRequest, match="not UTF-8"):
        Request(query="a=%ff")


# ---- bodies ------------------------------------------------------------------------------------------------


def test_json_and_what_is_none() -> None:
    assert Request(body=b'{"rows": [[1, 2.5]]}').json() == {"rows": [[1, 2.5]]}
    assert "empty" in refused(Request(body=b" \n"), "json").message
    error = refused(Request(body=b'{"rows": [1,}'), "json")
    assert error.status == 400 and error.message.startswith("the body is not JSON: ")


def test_text_by_its_charset() -> None:
    assert Request(body="Käse".encode()).text() == "Käse"
    latin = {"content-type": 'text/plain; charset="ISO-8859-1"'}
    assert Request(headers=latin, body="Käse".encode("latin-1")).text() == "Käse"
    assert "not utf-8" in refused(Request(body=b"\xff"), "text").message
    unknown = Request(headers={"content-type": "text/plain; charset=klingon"}, body=b"x")
    assert refused(unknown, "text").status == 415


def test_an_urlencoded_form() -> None:
    request = Request(
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}, body=b"a=1&b=x%20y&a=2"
    )
    assert request.form()["b"] == "x y" and request.form().all("a") == ["1", "2"]


def test_a_multipart_form_with_a_file() -> None:
    form = Request(headers=MULTIPART, body=TEXT + FILE + END).form()
    assert form["title"] == "Käse"
    photo = form["photo"]
    assert photo == Upload("photo", "a b.jpg", "image/jpeg", b"\xff\xd8\r\n--not the boundary\r\n\x00")


def test_a_form_of_another_type_is_refused() -> None:
    error = refused(Request(headers={"content-type": "application/json"}, body=b"{}"))
    assert error.status == 415 and "application/json" in error.message
    assert "without a content type" in refused(Request(body=b"a=1")).message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--",
        END[:-4],
        TEXT,
        TEXT + FILE,
        TEXT.replace(b"\r\n", b"\n") + END,
        b"preamble" + TEXT + END,
        part("Content-Disposition: form-data", b"x") + END,
        part("Content-Type: text/plain", b"x") + END,
        part("Content-Disposition: attachment; name=a", b"x") + END,
        part("no colon", b"x") + END,
        part('Content-Disposition: form-data; name="a"', b"\xff") + END,
        part('Content-Disposition: form-data; name="a"\r\nContent-Type: text/plain; charset=nope', b"x")
        + END,
    ],
)
def test_a_malformed_form_is_refused(body: bytes) -> None:
    assert refused(Request(headers=MULTIPART, body=body)).status == 400


def test_a_form_of_too_many_or_too_long_parts_is_refused() -> None:
    many = part("Content-Disposition: form-data; name=a", b"") * 1001
    assert refused(Request(headers=MULTIPART, body=many + END)).status == 413
    long = part(f"Content-Disposition: form-data; name={'a' * 10_000}", b"")
    assert refused(Request(headers=MULTIPART, body=long + END)).status == 413


@pytest.mark.parametrize("parameters", ["", "; boundary=", "; boundary=" + "b" * 71, '; boundary="ä"'])
def test_a_form_without_a_usable_boundary_is_refused(parameters: str) -> None:
    request = Request(headers={"content-type": "multipart/form-data" + parameters}, body=TEXT + END)
    assert "boundary" in refused(request).message


def test_forms_that_are_damaged_at_random_are_parsed_or_refused() -> None:
    """Cut, repeated, flipped: never another exception, and never a value that was not in the body."""
    rng = random.Random(11)
    whole = TEXT + FILE + END
    parsed = 0
    for _ in range(3000):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body) + 1)
            match rng.randrange(4):
                case 0:
                    del body[at : at + rng.randint(1, 20)]
                case 1:
                    body[at:at] = body[: rng.randrange(40)]
                case 2:
                    body[at : at + 1] = bytes([rng.randrange(256)])
                case _:
                    body[at:at] = rng.choice([b"\r\n", b"\n", b"--", BOUNDARY.encode(), b'"', b"\0", b";"])
        try:
            form = Request(headers=MULTIPART, body=bytes(body)).form()
        except BadRequest as error:
            assert error.status in (400, 413)
            continue
        parsed += 1
        for _, value in form.pairs():
            assert (value.data if isinstance(value, Upload) else value.encode()) in bytes(body)
    assert 0 < parsed < 3000


# ---- images ------------------------------------------------------------------------------------------------


def test_an_image_from_the_body_and_from_a_form() -> None:
    assert np.asarray(Request(body=png(3, 2)).image()).shape == (2, 3, 3)
    assert Request(body=png(3, 2, "RGBA")).image(mode="L").mode == "L"
    picture = part('Content-Disposition: form-data; name="p"; filename="p.png"', png(4, 4))
    request = Request(headers=MULTIPART, body=TEXT + picture + END)
    assert request.image().size == request.image("p").size == (4, 4)


def test_a_form_without_the_image_says_what_there_is() -> None:
    request = Request(headers=MULTIPART, body=TEXT + FILE + END)
    with pytest.raises(BadRequest, match="no file called nose; its files: photo"):
        request.image("nose")
    with pytest.raises(BadRequest, match="has no file; its files: none"):
        Request(headers=MULTIPART, body=TEXT + END).image()


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"GIF", 415), (b"no image at all", 415), (png(64, 64)[:-30], 400)]
)
def test_what_is_no_whole_image_is_refused(body: bytes, status: int) -> None:
    assert refused(Request(body=body), "image").status == status


def test_an_image_that_would_fill_the_memory_is_refused_unread() -> None:
    bomb = bytearray(png(1, 1))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # its header's width and height, and their checksum
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    assert refused(Request(body=bytes(bomb)), "image").status == 413
    with pytest.raises(BadRequest, match="20 x 10 pixels, more than 199"):
        Request(body=png(20, 10)).image(max_pixels=199)
    assert Request(body=png(20, 10)).image(max_pixels=200).size == (20, 10)


def test_images_that_are_damaged_at_random_are_decoded_or_refused() -> None:
    rng = random.Random(12)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        out = io.BytesIO()
        noise.save(out, kind)
        for _ in range(150):
            body = bytearray(out.getvalue())
            for _ in range(rng.randint(1, 8)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            try:
                image = Request(body=bytes(body)).image(max_pixels=1_000_000)
            except BadRequest:
                continue
            assert image.mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_that_are_decoded(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (4, 2)).save(out, kind)
    assert Request(body=out.getvalue()).image().size == (4, 2)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "SGI"])
def test_formats_that_start_programs_or_are_rare_are_not_known(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, kind)
    assert refused(Request(body=out.getvalue()), "image").status == 415


def test_without_pillow_an_image_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from fastserve.web import Request\n"
        "try: Request(body=b'x').image()\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fastserve[image]" in said.stdout


# ---- answers and calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [True, 199, 600, "200"])
def test_a_status_that_is_none_is_an_error_at_once(status: object) -> None:
    with pytest.raises(TypeError, match="status is 200 to 599"):
        Response(status=status)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="status is 400 to 599"):
        BadRequest("no", 200)


def test_a_bad_request_has_a_text_and_a_whole_status_whatever_it_is_made_of() -> None:
    class Own(BadRequest):
        def __init__(self, what: int) -> None:
            self.what = what

    said = BadRequest(KeyError("x"), np.int64(422))  # type: ignore[arg-type]
    assert (said.message, type(said.message), said.status, type(said.status)) == ("'x'", str, 422, int)
    assert (Own(1).message, Own(1).status) == ("the request cannot be answered", 400)


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nset-cookie: c"}, {"": "b"}, {"a": 1}])
def test_headers_that_would_break_the_answer_are_an_error_at_once(headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="header"):
        Response("x", headers=headers)


async def test_a_request_made_by_hand_asks_whom_it_is_given() -> None:
    async def predict(call: Call) -> dict[str, object]:
        return {"got": (call.model, call.inputs, call.version)}

    request = Request(predict=predict)
    assert await request.predict("m", {"x": [1]}, version=3) == {"got": ("m", {"x": [1]}, 3)}
    with pytest.raises(RuntimeError, match="made by hand"):
        await Request().predict("m", {})
