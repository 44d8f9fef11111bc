"""Logging in to the pages: who gets in, who does not, and what ends a login."""

import pytest

from tests.web_pages import PASSWORD, serving


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("pages")) as found:
        found.add_user("ada", "viewer")
        yield found


def test_nobody_sees_anything_without_a_login(pages):
    for path in ("/", "/account"):
        answer = pages.visitor().get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_the_right_password_opens_the_pages_and_is_audited(pages):
    visitor = pages.visitor()
    assert visitor.log_in("ada").status_code == 303
    assert "ada" in visitor.get("/").text
    [row] = pages.audit("web.login")
    assert (row["outcome"], row["address"], '"ada"' in row["detail"]) == ("DONE", "127.0.0.1", True)


@pytest.mark.parametrize("name", ["ada", "nobody", "", "x" * 5000, "ada' OR 1=1 --"])
def test_a_wrong_password_opens_nothing_and_does_not_tell_which_accounts_there_are(pages, name):
    visitor = pages.visitor()
    answer = visitor.log_in(name, "not the password")
    assert answer.status_code == 401
    assert "No account has this name and password." in answer.text
    assert visitor.get("/").status_code == 303


def test_logging_out_ends_the_login_even_for_a_copy_of_the_cookie(pages):
    visitor = pages.visitor()
    visitor.log_in("ada")
    copy = pages.visitor(cookies=dict(visitor.cookies))
    assert copy.get("/").status_code == 200
    assert visitor.fill("/logout").status_code == 303
    assert copy.get("/").status_code == 303
    assert PASSWORD not in str(pages.store.rows("SELECT * FROM audit"))
