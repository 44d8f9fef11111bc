"""Attacks on the pages: forged forms, planted logins, guessing, paths, names, sizes, slowness, idle connections."""

import contextlib
import logging
import re
import socket
import ssl
import time

import httpx
import pytest

from dicom_node.receiver.certificates import Authority
from dicom_node.web import connections
from dicom_node.web.certificate import Certificate
from dicom_node.web.security import shield
from dicom_node.web.security.throttle import FREE_TRIES
from tests.programs import wait_for
from tests.receiving import Node, ct_slice, store
from tests.web_pages import PASSWORD, Visitor, serving


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("pages"), web={"max_connections": 40}) as found:
        for name in ("ada", "eve", "victim"):
            found.add_user(name, "viewer")
        yield found


def test_a_form_without_the_token_of_this_login_does_nothing(pages):
    victim, attacker = pages.logged_in("operator"), pages.logged_in("auditor")
    for token in ("", "0" * 64, attacker.token(), "\x00"):
        assert victim.post("/logout", data={"csrf": token}).status_code == 403
        assert victim.post("/logout", headers={"X-CSRF-Token": token.replace("\x00", "x")}).status_code == 403
    assert victim.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_form_of_another_site_does_nothing_even_with_the_right_token(pages, headers):
    victim = pages.logged_in("operator")
    assert victim.post("/logout", data={"csrf": victim.token()}, headers=headers).status_code == 403
    assert victim.get("/").status_code == 200


def test_a_login_form_cannot_be_sent_from_elsewhere_so_nobody_is_logged_in_as_someone_else(pages):
    visitor = pages.visitor()
    assert visitor.post("/login", data={"name": "eve", "password": PASSWORD, "csrf": "0" * 64}).status_code == 403


def test_a_planted_login_is_not_taken_over(pages):
    attacker, victim = pages.visitor(), pages.visitor()
    attacker.log_in("eve")
    planted = attacker.cookies["login"]
    token = victim.token("/login")
    victim.cookies.set("login", planted, domain="127.0.0.1")
    answer = victim.post("/login", data={"csrf": token, "name": "victim", "password": PASSWORD})
    assert answer.status_code == 303
    issued = re.search(r"login=([^;]+)", answer.headers["set-cookie"])
    assert issued
    assert issued[1] != planted
    for cookie, expected in ((planted, 303), (issued[1], 200)):
        answer = httpx.get(f"http://127.0.0.1:{pages.port}/", cookies={"login": cookie})
        assert answer.status_code == expected


@pytest.mark.parametrize("cookie", ["", "x", "a.b.c", "A" * 4000])
def test_a_made_up_cookie_is_no_login(pages, cookie):
    visitor = pages.visitor(headers={"Cookie": f"login={cookie}"})
    assert visitor.get("/").status_code == 303


def test_another_password_ends_every_other_login(pages):
    pages.add_user("changing", "viewer")
    here, there = pages.visitor(), pages.visitor()
    here.log_in("changing")
    there.log_in("changing")
    wrong = here.fill("/account/password", present="not it at all", new="another good one", again="another good one")
    assert wrong.status_code == 403
    short = here.fill("/account/password", present=PASSWORD, new="short", again="short")
    assert short.status_code == 400
    done = here.fill("/account/password", present=PASSWORD, new="another good one", again="another good one")
    assert done.status_code == 303
    assert here.get("/account").status_code == 200
    assert there.get("/account").status_code == 303
    assert pages.visitor().log_in("changing").status_code == 401


def test_guessing_is_slowed_down_and_does_not_lock_the_owner_out(pages):
    attacker = pages.visitor()
    answers = [attacker.log_in("ada", f"guess number {number}").status_code for number in range(FREE_TRIES + 1)]
    assert answers == [401] * FREE_TRIES + [429]
    assert attacker.log_in("ada").status_code == 429  # the right password, from where it is guessed
    assert pages.visitor().log_in("eve").status_code == 303
    assert len(pages.audit("web.login-refused")) >= FREE_TRIES


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/%2e%2e/web.key",
        "/static//etc/passwd",
        "/static/..\\server.py",
        "/../web.key",
        "/static/%00",
    ],
)
def test_no_path_leads_out_of_the_static_files(pages, path):
    answer = raw(pages.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"400", b"303")


def test_a_request_for_another_host_is_refused(pages):
    assert pages.visitor(headers={"Host": "evil.example"}).get("/login").status_code == 421


def test_every_answer_forbids_inline_scripts_frames_and_caching(pages):
    for path in ("/login", "/static/style.css", "/no-such-page"):
        headers = pages.logged_in("viewer").get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_no_page_holds_what_the_policy_forbids(pages):
    visitor = pages.logged_in("administrator")
    for path in ("/", "/peers", "/settings", "/account", "/no-such-page"):
        text = visitor.get(path).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<[^>]*\s(style|on\w+)=|<style|javascript:", text), path


@pytest.mark.parametrize("how", ["declared", "chunked"])
def test_an_oversized_form_is_refused(pages, how):
    fields = [b"field%d=" % number + b"x" * 4000 for number in range(90)]
    visitor, much = pages.logged_in("viewer"), b"&".join(fields)
    assert len(much) > shield.MAX_BODY_BYTES
    content = much if how == "declared" else iter([much[:1000], much[1000:]])
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert visitor.post("/logout", content=content, headers=kind).status_code == 413
    assert visitor.get("/").status_code == 200


def test_a_form_with_files_or_thousands_of_fields_is_refused(pages):
    visitor = pages.logged_in("viewer")
    token = visitor.token()
    assert visitor.post("/logout", data={"csrf": token}, files={"file": b"x"}).status_code == 400
    fields = {f"field{number}": ("", "x") for number in range(200)}
    assert visitor.post("/logout", files=fields).status_code == 400
    assert visitor.get("/").status_code == 200


def test_a_request_that_drips_is_cut_off_and_so_is_a_form(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    monkeypatch.setattr(shield, "BODY_S", 0.5)
    with serving(tmp_path) as pages:
        for beginning in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
            assert raw(pages.port, beginning) == b""
        form = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        form += b"Content-Type: application/x-www-form-urlencoded\r\n\r\na="
        assert b" 408 " in raw(pages.port, form)


def test_a_broken_request_is_answered_and_quoted_nowhere(pages):
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        assert raw(pages.port, request + b"\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_idle_connections_make_room_and_the_receiver_does_not_notice(tmp_path, monkeypatch):
    """The short version of 1,000 idle sockets: more than the pages keep, and images come in as before."""
    monkeypatch.setattr(connections, "REQUEST_S", 300.0)  # not because they are slow
    with Node(tmp_path / "node") as node, serving(tmp_path / "pages", web={"max_connections": 40}) as pages:
        pages.add_user("ada", "viewer")
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(("127.0.0.1", pages.port))) for _ in range(200)]
            visitor = pages.visitor()
            assert visitor.log_in("ada").status_code == 303
            assert visitor.get("/").status_code == 200
            assert [status for status, _ in store(node, ct_slice(1), ct_slice(2))] == [0, 0]
            wait_for(lambda: sum(is_closed(one) for one in idle) >= 150, 20, "the oldest are closed")


def test_streams_are_bounded(tmp_path):
    with serving(tmp_path, web={"max_streams": 2}) as pages, contextlib.ExitStack() as stack:
        pages.add_user("ada", "viewer")
        visitor = pages.visitor()
        visitor.log_in("ada")
        kept = []  # an iterator that is dropped closes its stream
        for expected in (200, 200, 503):
            answer = stack.enter_context(visitor.stream("GET", "/live/today"))
            assert answer.status_code == expected
            if expected == 200:
                kept.append(answer.iter_lines())
                next(kept[-1])


def test_what_a_person_types_is_in_no_log(pages, capsys, caplog):
    visitor = pages.logged_in("viewer")
    with caplog.at_level(logging.DEBUG):
        visitor.get("/no-such-page/DOE%5EJANE", params={"patient": "DOE^JANE"})
        visitor.post("/login", data={"name": "DOE^JANE"})
    said = capsys.readouterr()
    mine = "".join(r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore")))
    assert "DOE" not in said.out + said.err + mine


def test_over_tls_the_cookies_are_for_tls_only_and_old_versions_are_refused(tmp_path):
    certificate, key = Authority("site", time.time()).issue(tmp_path, "node")
    with serving(tmp_path, web={"tls_certificate": certificate, "tls_key": key}) as pages:
        pages.add_user("ada", "viewer")
        with Visitor(pages.port, "https", verify=False) as visitor:
            answer = visitor.log_in("ada")
            assert answer.status_code == 303
            [cookie] = [one for one in answer.headers.get_list("set-cookie") if one.startswith("__Host-login=")]
            assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=strict", "Path=/"))
            assert "max-age" in answer.headers["strict-transport-security"]
        assert Certificate(certificate, key).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_behind_a_proxy_only_the_proxy_may_connect_and_its_word_about_the_address_counts(tmp_path):
    web = {"behind_proxy": ("127.0.0.1",), "names": ("node.example",)}
    with serving(tmp_path, web=web) as pages:
        pages.add_user("ada", "viewer")
        headers = {"Host": "node.example", "X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "https"}
        with Visitor(pages.port, headers=headers) as visitor:
            form = visitor.get("/login")
            token = re.search(r'name="csrf" value="([0-9a-f]+)"', form.text)
            assert token
            # Its cookies are for TLS, which the proxy does.
            cookie = {"Cookie": form.headers["set-cookie"].partition(";")[0]}
            data = {"csrf": token[1], "name": "ada", "password": "not the password"}
            assert visitor.post("/login", data=data, headers=cookie).status_code == 401
        assert pages.audit("web.login-refused")[-1]["address"] == "10.1.2.3"
    with serving(tmp_path / "far", web=web | {"behind_proxy": ("10.9.9.9",)}) as pages:
        assert httpx.get(f"http://127.0.0.1:{pages.port}/login", headers=headers).status_code == 403


def raw(port: int, content: bytes) -> bytes:
    """What comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(content)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := line.recv(65536):
                received += part
        return received


def is_closed(line: socket.socket) -> bool:
    """The other side has ended it."""
    line.setblocking(False)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_mistake_of_ours_tells_a_browser_nothing(pages, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("DOE^JANE")

    visitor = pages.logged_in("viewer")
    monkeypatch.setattr("dicom_node.web.pages.settings.all_shown", broken)
    answer = visitor.get("/settings")
    assert (answer.status_code, "DOE" in answer.text) == (500, False)
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert pages.logged_in("viewer").get("/").status_code == 200
