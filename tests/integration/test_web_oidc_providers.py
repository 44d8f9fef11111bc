"""Identity providers as hospitals have them: with the hospital's own authority, of another make, of another method."""

import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from config.settings import Settings
from dicom_node.errors import NodeError
from dicom_node.receiver.certificates import Authority
from dicom_node.web.server import serve
from tests.browser import WIDE, chromium
from tests.identity_provider import identity_provider
from tests.integration.test_web_oidc import came_back, refused
from tests.programs import free_port, running
from tests.storage_factory import Store
from tests.web_pages import Pages, Visitor, serving


@contextmanager
def serving_with(provider: Any, folder: Path, **more: Any) -> Iterator[Pages]:
    """The pages, with logins by this provider. more: settings of [web]; oidc: of [web.oidc]."""
    port = free_port()
    scheme = "https" if "tls_key" in more else "http"
    oidc = provider.settings | {"address": f"{scheme}://127.0.0.1:{port}"} | more.pop("oidc", {})
    with serving(folder, web={"oidc": oidc, "port": port, **more}) as pages:
        yield pages


def test_a_provider_that_wants_the_secret_in_the_form_gets_it_there_and_nowhere_else(tmp_path):
    with identity_provider() as provider, serving_with(provider, tmp_path) as pages:
        provider.methods = ["client_secret_post"]
        assert came_back(pages)[1].status_code == 200
        provider.methods = ["client_secret_basic"]
        refused(pages, "does not accept this login")


def test_over_tls_the_flows_cookie_is_bound_to_the_host_and_the_provider_to_the_hospitals_authority(tmp_path):
    site, other = Authority("site", time.time()), Authority("other", time.time())
    certificate, key = site.issue(tmp_path, "node")
    trusted, strange = site.write(tmp_path / "site.pem"), other.write(tmp_path / "other.pem")
    node = {"tls_certificate": certificate, "tls_key": key}
    with identity_provider(site.issue(tmp_path, "idp", hosts=("localhost",))) as provider:
        with (
            serving_with(provider, tmp_path / "a", **node, oidc={"authorities": trusted}) as pages,
            Visitor(pages.port, "https", verify=False) as visitor,
        ):
            there = visitor.get("/login/oidc")
            [cookie] = there.headers.get_list("set-cookie")
            assert cookie.startswith("__Host-flow=")
            assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"))
            at_provider = httpx.get(there.headers["location"], verify=ssl.create_default_context(cafile=trusted))
            back = at_provider.headers["location"]
            assert back.startswith(f"https://127.0.0.1:{pages.port}/login/oidc/callback?")
            given = visitor.get(back).headers.get_list("set-cookie")
            assert any(one.startswith("__Host-login=") and "SameSite=strict" in one for one in given)
        for folder, authorities in (("b", strange), ("c", None)):  # None: those of the machine
            with serving_with(provider, tmp_path / folder, oidc={"authorities": authorities}) as pages:
                answer = pages.visitor().get("/login/oidc")
                assert (answer.status_code, "cannot be used now" in answer.text) == (503, True)
        assert len(provider.asked) == 1


OIDC = {"issuer": "http://localhost", "address": "http://localhost", "client_id": "x", "roles": {"a": "viewer"}}


def test_without_the_extra_the_pages_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "dicom_node.web.security.provider", raising=False)
    monkeypatch.setitem(sys.modules, "joserfc", None)
    settings = Settings(data_dir=tmp_path, web={"port": 1, "oidc": OIDC})
    with Store(tmp_path) as store, pytest.raises(NodeError, match=r"joserfc: pip install 'dicom-node\[sso\]'"):
        serve(settings, store.database, store.files, threading.Event())


def test_a_provider_of_somebody_elses_making_lets_a_person_in(tmp_path):
    port = free_port()
    issuer = f"http://localhost:{port}"
    with running([sys.executable, "-m", "oidc_provider_mock", "--port", str(port)], port, tmp_path):
        person = {"preferred_username": "ada", "groups": ["radiology"]}
        assert httpx.put(f"{issuer}/users/subject-1", json=person).status_code == 204
        other = SimpleNamespace(settings={"issuer": issuer, "client_id": "node", "client_secret": "a secret: %/+"})
        with serving_with(other, tmp_path / "node", oidc={"roles": {"radiology": "reader"}}) as pages:
            with chromium() as browser:
                page = browser.new_page(base_url=f"http://127.0.0.1:{pages.port}", viewport=WIDE)
                page.goto("/login")
                button = page.get_by_text("Log in with your hospital's account")
                card, own = page.locator(".login form").bounding_box(), button.bounding_box()
                assert (own["x"], own["width"]) == (card["x"], card["width"])
                button.click()
                page.get_by_placeholder("sub").fill("subject-1")
                page.get_by_role("button", name="Authorize").click()
                page.get_by_text("sso:ada").wait_for(timeout=20_000)
            assert pages.audit("web.login")[-1]["outcome"] == "DONE"
