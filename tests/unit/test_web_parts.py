"""Parts of the pages by themselves: who guards a page, what is vendored, how often a password may be tried."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.routing import Mount, Route

from dicom_node.web.pages.render import STATIC, templates
from dicom_node.web.pages.worklist_words import headline
from dicom_node.web.routes import routes
from dicom_node.web.security.guard import for_whom
from dicom_node.web.security.roles import Role, User
from dicom_node.web.security.throttle import FREE_TRIES, FREE_TRIES_OF_ADDRESS, LoginThrottle
from storage.worklist import Page, Search

ROOT = Path(__file__).resolve().parents[2]
# By name: a vendored file is the one that was looked at.
VENDORED = {"htmx.min.js": "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"}
OPEN = {"/login", "/login/oidc", "/login/oidc/callback"}


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_files_are_the_ones_that_were_looked_at(name):
    assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == VENDORED[name]


def test_every_page_needs_a_role_but_the_login():
    guards = {(r.path, *sorted(r.methods or ())): for_whom(r.endpoint) for r in routes() if isinstance(r, Route)}
    assert all(whom in {str(role) for role in Role} or key[0] in OPEN for key, whom in guards.items())
    assert {key[0] for key, whom in guards.items() if whom == "anybody"} == OPEN
    assert [r.path for r in routes() if isinstance(r, Mount)] == ["/static"]


def test_every_template_compiles_and_escapes():
    for name in templates().list_templates():
        templates().get_template(name)
    assert templates().from_string("{{ text }}").render(text="<script>") == "&lt;script&gt;"


def test_roles_give_what_they_say():
    def may(*roles):
        return {role for role in Role if User(1, "x", frozenset(roles), "").may(role)}

    assert may() == set()
    assert may(Role.OPERATOR) == {Role.VIEWER, Role.OPERATOR}
    assert may(Role.READER, Role.AUDITOR) == {Role.VIEWER, Role.READER, Role.AUDITOR}
    assert may(Role.ADMINISTRATOR) == set(Role)


def test_guessing_is_slowed_down_where_it_comes_from_and_the_owner_is_never_kept_out():
    now = [0.0]
    throttle = LoginThrottle(lambda: now[0])
    for _ in range(FREE_TRIES):
        assert throttle.wait_s("ada", "10.0.0.1") == 0
        throttle.failed("ada", "10.0.0.1")
    assert throttle.wait_s("ada", "10.0.0.1") > 0
    assert throttle.wait_s("ADA", "10.0.0.1") > 0
    assert throttle.wait_s("ada", "10.0.0.2") == 0
    assert throttle.wait_s("bob", "10.0.0.1") == 0
    for number in range(FREE_TRIES_OF_ADDRESS):
        throttle.failed(f"name{number}", "10.0.0.1")
    assert throttle.wait_s("bob", "10.0.0.1") > 0
    now[0] = 4000.0
    assert throttle.wait_s("ada", "10.0.0.1") == 0


def test_an_ipv6_network_counts_as_one_address():
    throttle = LoginThrottle(lambda: 0.0)
    for number in range(FREE_TRIES):
        throttle.failed("ada", f"2001:db8::{number:x}")
    assert throttle.wait_s("ada", "2001:db8::ffff") > 0
    assert throttle.wait_s("ada", "2001:db8:0:1::1") == 0


def test_every_line_of_the_security_list_names_a_test_that_there_is():
    rows = re.findall(r"^\| (?!what|---)(.+) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), test


@pytest.mark.parametrize(
    ("of_series", "said"), [([1, 1, 2, 2], "2 series, 4 results."), ([1, 2], "2 series."), ([], "No series.")]
)
def test_the_worklist_counts_no_series_twice_because_two_models_report(of_series, said):
    lines = [SimpleNamespace(series_pk=one) for one in of_series]
    assert headline(Search(), Page(lines, None, len(lines)), 0) == said
