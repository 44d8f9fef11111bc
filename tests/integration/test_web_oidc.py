"""Logging in by an identity provider: a real one on a socket, good and bad."""

import json
import time

import httpx
import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from config.settings import OidcSettings
from dicom_node.web.security.flow import FLOW_S, Flow, ProviderAway, UsedFlows
from dicom_node.web.security.provider import ENDPOINTS, described_by
from tests.browser import chromium
from tests.identity_provider import SECRET, identity_provider
from tests.programs import free_port
from tests.web_pages import PASSWORD, serving

NOT_SIGNED = "not signed by a key of the provider"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with identity_provider() as provider:
        port = free_port()
        oidc = provider.settings | {"address": f"http://127.0.0.1:{port}"}
        with serving(tmp_path_factory.mktemp("pages"), web={"oidc": oidc, "port": port}) as pages:
            pages.add_user("local", "viewer")
            yield pages, provider


@pytest.fixture
def pages(served):
    served[1].reset()
    return served[0]


@pytest.fixture
def provider(served, pages):
    return served[1]


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Tests are refused more often than a person would be."""
    monkeypatch.setattr("dicom_node.web.security.throttle.FREE_TRIES", 1000)
    monkeypatch.setattr("dicom_node.web.security.throttle.FREE_TRIES_OF_ADDRESS", 1000)


def begun(pages):
    """A browser that was sent to the provider and back again, and the address it was given there."""
    visitor = pages.visitor()
    there = visitor.get("/login/oidc")
    assert there.status_code == 303
    back = httpx.get(there.headers["location"])
    return visitor, back.headers["location"]


def came_back(pages):
    visitor, address = begun(pages)
    return visitor, visitor.get(address)


def refused(pages, words, status=403):
    visitor, answer = came_back(pages)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert visitor.get("/").headers["location"] == "/login"
    last = pages.audit("web.login-refused")[-1]
    assert (last["outcome"], json.loads(last["detail"])["by"]) == ("REFUSED", "oidc")


def test_a_person_of_the_provider_logs_in_with_the_roles_of_the_groups_and_is_audited(pages, provider):
    provider.groups = ["night", "radiology", "unknown"]
    visitor, answer = came_back(pages)
    assert (answer.status_code, 'content="0;url=/"' in answer.text) == (200, True)
    cookies = answer.headers.get_list("set-cookie")
    assert any(one.startswith("login=") and "samesite=strict" in one.lower() for one in cookies)
    assert any(one.startswith('flow=""') for one in cookies)
    assert "sso:ada" in visitor.get("/").text
    row = pages.audit("web.login")[-1]
    assert json.loads(row["detail"]) == {"user": "sso:ada", "by": "oidc", "roles": ["reader", "operator"]}
    assert visitor.get("/audit").status_code == 403


def test_the_clients_secret_is_on_no_page_and_in_no_audit_row(pages, provider):
    visitor, _ = came_back(pages)
    text = visitor.get("/settings").text
    assert (provider.issuer in text, SECRET in text) == (True, False)
    assert SECRET not in str(pages.store.rows("SELECT * FROM audit"))


def test_refused_logins_are_slowed_down_and_strangers_slow_nobody_down(provider, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.web.security.throttle.FREE_TRIES", 2)
    provider.reset()
    port = free_port()
    oidc = provider.settings | {"address": f"http://127.0.0.1:{port}"}
    with serving(tmp_path, web={"oidc": oidc, "port": port}) as pages:
        for _ in range(20):
            assert pages.visitor().get("/login/oidc/callback?state=x").status_code == 403
        assert len(pages.audit("web.login-refused")) < 20
        assert came_back(pages)[1].status_code == 200
        provider.groups = []
        assert 429 in [came_back(pages)[1].status_code for _ in range(12)]


def test_the_flows_cookie_is_the_only_lax_one_and_the_address_is_the_providers(pages, provider):
    answer = pages.visitor().get("/login/oidc?next=https://evil.example")
    [cookie] = answer.headers.get_list("set-cookie")
    assert cookie.startswith("flow=") and "samesite=lax" in cookie.lower() and "httponly" in cookie.lower()
    assert answer.headers["location"].startswith(f"{provider.issuer}/authorize?")
    assert "evil" not in answer.headers["location"]


def test_the_provider_takes_over_no_local_account_and_its_people_have_no_password(pages, provider):
    provider.name = "local"
    visitor, _ = came_back(pages)
    assert "sso:local" in visitor.get("/").text
    local = pages.visitor()
    assert local.log_in("local").status_code == 303
    assert "sso:local" not in local.get("/").text
    for password in (PASSWORD, "", "oidc"):
        assert pages.visitor().log_in("sso:local", password).status_code == 401


def test_another_person_of_the_same_name_is_refused(pages, provider):
    came_back(pages)
    provider.subject = "subject-another"
    refused(pages, "Another person had this account name")


def test_who_is_in_no_group_any_more_is_refused_and_logged_out_everywhere(pages, provider):
    provider.name, provider.subject = "eve", "subject-eve"
    visitor, _ = came_back(pages)
    assert visitor.get("/").status_code == 200
    provider.groups = ["elsewhere"]
    refused(pages, "None of your groups")
    assert visitor.get("/").status_code == 303


@pytest.mark.parametrize("groups", [["elsewhere"], [], None, "elsewhere", {"radiology": 1}, [["radiology"]], 7])
def test_without_a_group_of_the_map_nobody_gets_in(pages, provider, groups):
    provider.name, provider.subject, provider.groups = "nobody", "subject-nobody", groups
    refused(pages, "None of your groups may see")
    assert json.loads(pages.audit("web.login-refused")[-1]["detail"])["user"] == "sso:nobody"
    assert "sso:nobody" not in str(pages.store.rows("SELECT name FROM web_users"))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"nonce": "another"}, "belongs to another login"),
        ({"nonce": None}, "belongs to another login"),
        ({"aud": "another"}, "meant for another program"),
        ({"aud": ["another", "dicom-node"]}, "meant for another program"),
        ({"aud": None}, "meant for another program"),
        ({"azp": "another"}, "meant for another program"),
        ({"iss": "https://evil.example"}, "of another provider"),
        ({"exp": time.time() - 3600}, "has expired"),
        ({"exp": None}, "has expired"),
        ({"exp": "never"}, "has expired"),
        ({"iat": time.time() + 3600}, "not valid yet"),
        ({"sub": None}, "names no subject"),
        ({"preferred_username": "<b>x</b>"}, "no name that an account can have"),
        ({"preferred_username": "sso:ada"}, "no name that an account can have"),
        ({"preferred_username": None}, "no name that an account can have"),
    ],
)
def test_a_token_that_says_the_wrong_thing_lets_nobody_in(pages, provider, claims, words):
    provider.claims = claims
    refused(pages, words)


@pytest.mark.parametrize("how", ["unsigned", "signed_by_the_public_key", "signed_by_another_key"])
def test_a_token_without_the_providers_signature_lets_nobody_in(pages, provider, how):
    provider.sign = getattr(provider, how)
    refused(pages, NOT_SIGNED)


@pytest.mark.parametrize("token", ["", "a.b.c", "x" * 10_000, "....", "é.é.é"])
def test_what_is_no_token_lets_nobody_in(pages, provider, token):
    provider.sign = lambda claims: token
    refused(pages, NOT_SIGNED)


def test_an_answer_counts_once(pages, provider):
    visitor, address = begun(pages)
    copy = pages.visitor(cookies=dict(visitor.cookies))
    assert visitor.get(address).status_code == 200
    answer = copy.get(address)
    assert (answer.status_code, "belongs to no login that this browser began" in answer.text) == (403, True)
    assert len(provider.asked) == 1
    assert copy.get("/").status_code == 303


def test_an_answer_for_another_browser_is_refused_before_the_provider_is_asked(pages, provider):
    _, address = begun(pages)
    other, _ = begun(pages)
    for visitor in (pages.visitor(), other, pages.visitor(cookies={"flow": "flow.a.b.c"})):
        answer = visitor.get(address)
        assert (answer.status_code, "belongs to no login" in answer.text) == (403, True)
    for query in ("", "?code=x", "?state=x&code=x", "?error=access_denied"):
        assert pages.visitor().get(f"/login/oidc/callback{query}").status_code == 403
    assert provider.asked == []


def test_who_is_refused_at_the_provider_is_told_so(pages):
    visitor, address = begun(pages)
    state = httpx.URL(address).params["state"]
    answer = visitor.get(f"/login/oidc/callback?error=<script>&state={state}")
    assert (answer.status_code, "did not let you in" in answer.text, "<script>&" in answer.text) == (403, True, False)


@pytest.mark.parametrize(
    ("where", "answer", "words"),
    [
        ("token", Response("x" * 2_000_000), "too large"),
        ("token", Response(b"{}", headers={"content-encoding": "gzip"}), "compressed"),
        ("token", JSONResponse([]), "not JSON"),
        ("token", Response("[" * 100_000), "not JSON"),
        ("token", JSONResponse({}), "no ID token"),
        ("token", Response("", 500), "status 500"),
        ("keys", RedirectResponse("http://127.0.0.1:1/"), "status 307"),
    ],
)
def test_a_provider_that_answers_nonsense_is_named_and_local_accounts_still_log_in(
    pages, provider, where, answer, words
):
    provider.answers[where] = answer
    refused(pages, words, 503)
    assert pages.visitor().log_in("local").status_code == 303


@pytest.mark.parametrize(
    "keys", [{}, {"keys": 7}, {"keys": [{"kty": "oct", "k": "eA"}]}, {"keys": [{"kty": "RSA", "n": 7, "e": 7}]}]
)
def test_a_provider_without_public_keys_lets_nobody_in(pages, provider, keys):
    provider.answers["keys"] = JSONResponse(keys)
    refused(pages, NOT_SIGNED)


def test_a_code_that_the_provider_does_not_know_lets_nobody_in(pages, provider):
    visitor, address = begun(pages)
    provider.codes.clear()
    assert "does not accept this login" in visitor.get(address).text


def test_while_the_provider_is_away_the_page_says_so_and_local_accounts_log_in(tmp_path):
    oidc = {"issuer": f"http://127.0.0.1:{free_port()}", "address": "http://localhost", "client_id": "x"}
    with serving(tmp_path, web={"oidc": oidc | {"roles": {"a": "viewer"}}}) as pages:
        pages.add_user("local", "viewer")
        visitor = pages.visitor()
        answer = visitor.get("/login/oidc")
        assert (answer.status_code, "cannot be used now" in answer.text) == (503, True)
        assert visitor.log_in("local").status_code == 303


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri", "issuer"])
def test_a_description_that_names_a_plain_line_is_not_followed(name):
    good = {"issuer": "https://a.example"} | dict.fromkeys(ENDPOINTS, "https://a.example/x")
    settings = OidcSettings(issuer="https://a.example")
    assert described_by(good, settings)["jwks_uri"] == "https://a.example/x"
    with pytest.raises(ProviderAway):
        described_by(good | {name: "http://a.example/x"}, settings)


def test_a_slow_answer_is_not_waited_for(pages, provider, monkeypatch):
    monkeypatch.setattr("dicom_node.web.security.provider.PATIENCE_S", 0.5)
    provider.drips = True
    refused(pages, "does not answer in time", 503)


def test_without_a_provider_there_is_no_such_login_and_its_people_are_out(tmp_path):
    with serving(tmp_path) as pages:
        pages.add_user("sso:ada", "viewer")
        visitor = pages.visitor()
        assert visitor.get("/login/oidc").status_code == 404
        assert visitor.get("/login/oidc/callback").status_code == 404
        assert "/login/oidc" not in visitor.get("/login").text


def test_a_flow_is_forgotten_after_its_time_and_not_before():
    now = [0.0]
    used, flow = UsedFlows(lambda: now[0]), Flow.new()
    assert used.use(flow)
    assert not used.use(flow)
    now[0] = FLOW_S - 1
    assert not used.use(flow)


def test_in_a_browser_the_way_there_and_back_ends_on_the_first_page(pages, provider):
    provider.shows_a_page = True  # so that the way back begins at another site
    with chromium() as browser:
        page = browser.new_page(base_url=f"http://127.0.0.1:{pages.port}")
        page.goto("/login")
        page.get_by_text("Log in with your hospital's account").click()
        page.get_by_text("Yes").click()
        page.get_by_text("sso:ada").wait_for(timeout=20_000)
        assert page.url == f"http://127.0.0.1:{pages.port}/"
