"""DICOMweb archives: what each kind of answer means for each object, and for the delivery."""

import gzip
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from config.gateways.stow import StowDestination
from config.settings import SenderSettings
from dicom_node.delivery.sender import DestinationSender
from dicom_node.gateways.stow import Stow
from dicom_node.receiver.certificates import Authority
from dicom_node.scu.store import StoreOutcome, read_instance
from tests import stow_server as server
from tests.outbox import COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE, SEGMENTATION, instance, make_node, part10, sending
from tests.programs import free_port, wait_for

IMPATIENT = SenderSettings(connect_timeout_s=1, response_timeout_s=1)
KINDS = ("report", "report-comprehensive", "segmentation", "summary")
NOW = 1_700_000_000.0
STORED, WARNING, TRANSIENT, PERMANENT = StoreOutcome


def destination(url: str, **more: object) -> StowDestination:
    return StowDestination(kind="stow", name="archive", url=url, **more)


def files_in(folder: Path, classes: Sequence[str]) -> list[Path]:
    paths = [folder / f"{number}.dcm" for number in range(len(classes))]
    for path, sop_class in zip(paths, classes, strict=True):
        path.write_bytes(part10(instance(sop_class)))
    return paths


def stored(folder: Path, archive: server.Archive, classes: Sequence[str], **more: object):
    """Send one instance of each class; outcome, status and detail of each."""
    paths = files_in(folder, classes)
    results = Stow(destination(archive.url, **more), IMPATIENT).store([read_instance(path) for path in paths])
    assert [one.sop_instance_uid for one in results] == [server.uid_of(path.read_bytes()) for path in paths]
    return [(one.outcome, one.status) for one in results], results[0].detail


def node_for(folder: Path, archive: server.Archive, kinds: Sequence[str] = KINDS, **sections: object):
    node = make_node(folder / "node", destination(archive.url), **sections)
    objects = node.add_result(NOW, kinds)
    return node, {kind: (one.SOPInstanceUID, part10(one)) for kind, one in objects.items()}


def work(node, times: int = 1) -> None:
    sender = DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)
    for number in range(times):
        sender.work_once(NOW + 100 * number)


def test_the_archive_gets_the_stored_bytes_of_the_report_and_what_goes_with_it(tmp_path):
    with server.archive() as archive:
        node, objects = node_for(tmp_path, archive)
        work(node)
        assert node.states() == {"archive": "SENT"}
        uid, _ = objects.pop("report-comprehensive")  # only for those who refuse the first
        assert archive.held == {uid: [content] for uid, content in objects.values()}
        assert uid not in archive.held
        assert archive.requests[0]["path"] == "/studies"


@pytest.mark.parametrize("xml", [False, True])
def test_a_refused_class_is_read_from_the_answer_and_the_lower_report_goes_instead(tmp_path, xml):
    refused = {COMPREHENSIVE_3D_SR: 0x0122, SEGMENTATION: 0x0122}
    with server.archive(server.fails(refused, 202, xml=xml)) as archive:
        node, objects = node_for(tmp_path, archive)
        work(node)
        assert node.states() == {"archive": "SENT"}
        assert set(archive.held) == {objects["report-comprehensive"][0], objects["summary"][0]}
        assert "the result is told by: report-comprehensive" in node.deliveries()[0].warning


@pytest.mark.parametrize("xml", [False, True])
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (0x0122, (PERMANENT, 0x0122)),
        (0xA900, (PERMANENT, 0xA900)),
        (0xC122, (PERMANENT, 0xC122)),
        (0xA700, (TRANSIENT, 0xA700)),
        (0x0110, (TRANSIENT, 0x0110)),
        (0x0111, (WARNING, 0x0111)),
        (None, (TRANSIENT, 0x0110)),
    ],
)
def test_each_failure_reason_means_what_it_means_as_a_status(tmp_path, reason, expected, xml):
    with server.archive(server.fails({SEGMENTATION: reason}, 202, xml=xml)) as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR, SEGMENTATION])
    assert found == [(STORED, 0), expected]


def test_a_conflict_that_names_no_failure_is_put_to_each_object_by_itself(tmp_path):
    def one_by_one(archive, handler, parts):
        if len(parts) > 1 or server.class_of(parts[0]) == SEGMENTATION:
            handler.answer(409, b"", "text/plain")
        else:
            server.stores()(archive, handler, parts)

    with server.archive(one_by_one, one_by_one, one_by_one, one_by_one) as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR, SEGMENTATION, SECONDARY_CAPTURE])
    assert found == [(STORED, 0), (PERMANENT, 0xC000), (STORED, 0)]
    assert len(archive.held) == 2


def test_a_conflict_with_failures_tells_them_and_is_not_repeated(tmp_path):
    with server.archive(server.fails({COMPREHENSIVE_3D_SR: 0xA900, SEGMENTATION: 0x0122}, 409)) as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR, SEGMENTATION])
    assert found == [(PERMANENT, 0xA900), (PERMANENT, 0x0122)]
    assert len(archive.requests) == 1


def test_a_warning_is_kept_with_the_delivery(tmp_path):
    with server.archive(server.stores(202, warning=0xB000)) as archive:
        node, _ = node_for(tmp_path, archive, ["report"])
        work(node)
    assert node.states() == {"archive": "SENT"}
    assert node.deliveries()[0].warning == "report: warning reason 0xB000"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, (PERMANENT, 0xC000)),
        (401, (TRANSIENT, None)),
        (403, (TRANSIENT, None)),
        (404, (TRANSIENT, None)),
        (413, (PERMANENT, 0xA700)),
        (415, (PERMANENT, 0x0122)),
        (429, (TRANSIENT, None)),
        (500, (TRANSIENT, 0x0110)),
        (501, (TRANSIENT, 0x0110)),
        (502, (TRANSIENT, None)),
        (503, (TRANSIENT, None)),
        (504, (TRANSIENT, None)),
    ],
)
def test_each_status_means_one_thing(tmp_path, status, expected):
    with server.archive(server.says(status, b"<html>Doe^Jane</html>")) as archive:
        found, detail = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR])
    assert found == [expected]
    assert detail.startswith(f"HTTP status {status}") and "Doe" not in detail


@pytest.mark.parametrize("status", [400, 413, 415])
def test_an_object_that_a_status_refuses_does_not_keep_the_others_out(tmp_path, status):
    def reply(archive, handler, parts):
        if SEGMENTATION in map(server.class_of, parts):
            handler.answer(status, b"", "text/plain")
        else:
            server.stores()(archive, handler, parts)

    with server.archive(*[reply] * 4) as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR, SEGMENTATION, SECONDARY_CAPTURE])
    assert [outcome for outcome, _ in found] == [STORED, PERMANENT, STORED]


@pytest.mark.parametrize(
    "reply",
    [
        server.says(200),
        server.says(200, b"<html><body>Please log in</body></html>"),
        server.says(200, b"{}", server.DICOM_JSON),
        server.says(200, b'{"00081199": {"vr": "SQ"}}', server.DICOM_JSON),
        server.says(200, b'{"00081199": 7}', server.DICOM_JSON),
        server.says(200, b"[" * 100_000, server.DICOM_JSON),
        server.says(200, b"\x00\xff" * 500, server.DICOM_JSON),
        server.says(200, b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "application/dicom+xml"),
        server.says(200, b"<a><b></a>", "application/dicom+xml"),
        server.says(200, b" " * 5 * 1024**2, server.DICOM_JSON),
        server.says(200, gzip.compress(bytes(2**20)), server.DICOM_JSON, Content_Encoding="gzip"),
        server.says(307, b"", "text/plain", Location="http://elsewhere.example/studies"),
    ],
)
def test_only_a_list_with_the_object_in_it_says_that_it_is_stored(tmp_path, reply):
    with server.archive(reply) as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR])
        assert [outcome for outcome, _ in found] == [TRANSIENT]
        assert len(archive.requests) == 1  # no redirect was followed


@pytest.mark.parametrize("reply", [server.cuts, server.hangs, server.drips])
def test_a_peer_that_breaks_off_says_nothing_or_never_ends_is_away(tmp_path, reply):
    with server.archive(reply) as archive:
        found, detail = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE])
    assert found == [(TRANSIENT, None), (TRANSIENT, None)]
    assert "answer" in detail or "cut" in detail


def test_more_than_fits_goes_in_several_requests(tmp_path):
    with server.archive() as archive:
        found, _ = stored(tmp_path, archive, [COMPREHENSIVE_3D_SR] * 40, max_request_mb=1)
        assert found == [(STORED, 0)] * 40 and len(archive.held) == 40
        assert len(archive.requests) == 3


def test_what_is_stored_is_not_sent_again_with_the_rest(tmp_path):
    with server.archive(server.fails({SEGMENTATION: 0xA700})) as archive:
        node, objects = node_for(tmp_path, archive, ["report", "segmentation", "summary"])
        work(node, times=2)
        assert node.states() == {"archive": "SENT"}
        assert {uid: len(copies) for uid, copies in archive.held.items()} == dict.fromkeys(
            [uid for uid, _ in objects.values()], 1
        )


@pytest.mark.parametrize("lost", [server.cuts, server.says(500), server.says(200, b"garbage")])
def test_a_lost_answer_costs_the_same_bytes_again(tmp_path, lost):
    with server.archive(server.keeps_and(lost)) as archive:
        node, objects = node_for(tmp_path, archive, ["report", "segmentation"])
        work(node, times=2)
        assert node.states() == {"archive": "SENT"}
        assert archive.held == {uid: [content, content] for uid, content in objects.values()}


def test_final_refusals_end_with_the_reason(tmp_path):
    with server.archive(*[server.fails({COMPREHENSIVE_3D_SR: 0xA900}, 409)] * 3) as archive:
        node, _ = node_for(tmp_path, archive, ["report"])
        work(node, times=4)
    assert node.states() == {"archive": "FAILED"}
    assert node.deliveries()[0].error == "report: failure reason 0xA900"


def test_a_peer_that_was_away_gets_everything_when_it_is_back(tmp_path):
    port = free_port()
    node = make_node(tmp_path / "node", destination(f"http://localhost:{port}"))
    expected = [node.add_result(time.time(), ["report"])["report"].SOPInstanceUID for _ in range(3)]
    with sending(node):
        wait_for(lambda: node.deliveries()[0].error, what="the first attempt")
        with server.archive(port=port) as archive:
            wait_for(lambda: {one.state for one in node.deliveries()} == {"SENT"}, what="all are sent")
    assert set(archive.held) == set(expected)


def test_a_user_and_a_password_come_from_a_file_that_is_read_each_time(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    with server.archive() as archive:
        stow = Stow(destination(archive.url, auth="basic", user="node", credentials=secret), IMPATIENT)
        instances = [read_instance(path) for path in files_in(tmp_path, [SECONDARY_CAPTURE])]
        stow.store(instances)
        secret.write_text("second\n")
        stow.store(instances)
        assert [one["Authorization"] for one in archive.requests] == [
            "Basic bm9kZTpmaXJzdA==",
            "Basic bm9kZTpzZWNvbmQ=",
        ]


def test_a_token_comes_from_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHIVE_TOKEN", "abc")
    with server.archive() as archive:
        stored(tmp_path, archive, [SECONDARY_CAPTURE], auth="bearer", credentials_variable="ARCHIVE_TOKEN")
        assert archive.requests[0]["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "holds no secret"),
        (b"a\nb", "holds no secret"),
        ("tökén".encode(), "characters that no token has"),
    ],
)
def test_without_a_secret_nothing_is_sent_and_the_reason_holds_none(tmp_path, content, reason):
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    with server.archive() as archive:
        found, detail = stored(tmp_path, archive, [SECONDARY_CAPTURE], auth="bearer", credentials=secret)
        assert found == [(TRANSIENT, None)] and reason in detail and not archive.requests


@pytest.mark.parametrize("by", ["basic", "post"])
def test_a_token_is_asked_for_once_and_again_when_it_is_refused(tmp_path, by):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with server.archive(server.stores(), server.says(401), server.stores()) as archive:
        settings = destination(
            archive.url, auth="oauth2", user="node", credentials=secret, token_url=f"{archive.url}/token",
            scope="store", token_by=by,
        )  # fmt: skip
        stow = Stow(settings, IMPATIENT)
        instances = [read_instance(path) for path in files_in(tmp_path, [SECONDARY_CAPTURE])]
        assert [one.outcome for one in stow.store(instances)] == [STORED]
        assert [one.outcome for one in stow.store(instances)] == [STORED]
        asked = [(one["path"], one.get("Authorization", "")) for one in archive.requests]
        first, second = (("/studies", f"Bearer token-{number}") for number in (1, 2))
        by_header = "Basic bm9kZTpzM2NyZXQ=" if by == "basic" else ""
        assert asked == [("/token", by_header), first, first, ("/token", by_header), second]
        form = archive.requests[0]["form"]
        assert form.startswith("grant_type=client_credentials&scope=store")
        assert ("client_id=node&client_secret=s3cret" in form) is (by == "post")


def test_a_token_that_is_refused_twice_is_not_asked_for_without_end(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with server.archive(*[server.says(401)] * 5) as archive:
        found, detail = stored(
            tmp_path, archive, [SECONDARY_CAPTURE], auth="oauth2", user="node", credentials=secret,
            token_url=f"{archive.url}/token",
        )  # fmt: skip
        assert found == [(TRANSIENT, None)] and "s3cret" not in detail
        assert archive.tokens_given == 2


def test_the_reasons_and_the_log_hold_no_secret_and_no_patient(tmp_path, capfd):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with server.archive(server.says(500, b"Test^Outbox s3cret")) as archive:
        node = make_node(tmp_path / "node", destination(archive.url, auth="basic", user="node", credentials=secret))
        node.add_result(NOW, ["report"])
        work(node)
        said = f"{node.deliveries()} {capfd.readouterr()} {node.audited('delivery.pending')}"
    assert "status 500" in said and "s3cret" not in said and "Test^Outbox" not in said


@pytest.fixture
def tls(tmp_path):
    """An authority, the settings of a client with its certificate, and a server that demands one."""
    authority = Authority("ca", time.time())
    ca = authority.write(tmp_path / "ca.pem")
    certificate, key = authority.issue(tmp_path, "node")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(*authority.issue(tmp_path, "archive", hosts=("localhost",)))
    context.verify_mode = ssl.CERT_REQUIRED
    return context, {"tls_authorities": ca, "tls_certificate": certificate, "tls_key": key}


def test_both_sides_show_their_certificates(tmp_path, tls):
    context, ours = tls
    with server.archive(context=context) as archive:
        found, _ = stored(tmp_path, archive, [SECONDARY_CAPTURE], **ours)
        assert found == [(STORED, 0)]


def test_an_archive_of_an_unknown_authority_gets_nothing(tmp_path, tls):
    context, ours = tls
    other = Authority("other", time.time()).write(tmp_path / "other.pem")
    with server.archive(context=context) as archive:
        found, detail = stored(tmp_path, archive, [SECONDARY_CAPTURE], **{**ours, "tls_authorities": other})
        assert found == [(TRANSIENT, None)] and "its certificate is not trusted" in detail
        assert not archive.requests


def test_a_certificate_for_another_host_gets_nothing(tmp_path, tls):
    context, ours = tls
    with server.archive(context=context) as archive:
        archive.url = archive.url.replace("localhost", "127.0.0.1")
        found, detail = stored(tmp_path, archive, [SECONDARY_CAPTURE], **ours)
        assert found == [(TRANSIENT, None)] and "its certificate is not trusted" in detail


def test_without_a_certificate_of_ours_the_archive_takes_nothing(tmp_path, tls):
    context, ours = tls
    with server.archive(context=context) as archive:
        found, _ = stored(tmp_path, archive, [SECONDARY_CAPTURE], tls_authorities=ours["tls_authorities"])
        assert found == [(TRANSIENT, None)] and not archive.requests


def test_a_server_of_tokens_that_nobody_vouches_for_gets_no_secret(tmp_path, tls):
    context, _ = tls
    context.verify_mode = ssl.CERT_NONE
    (tmp_path / "secret").write_text("s3cret")
    with server.archive() as archive, server.archive(context=context) as giver:
        found, detail = stored(
            tmp_path, archive, [SECONDARY_CAPTURE], auth="oauth2", user="node", credentials=tmp_path / "secret",
            token_url=f"{giver.url}/token",
        )  # fmt: skip
        assert found == [(TRANSIENT, None)] and "not trusted" in detail
        assert not giver.requests and not archive.requests


def test_tls_files_that_cannot_be_read_are_a_reason(tmp_path, tls):
    context, ours = tls
    with server.archive(context=context) as archive:
        missing = {**ours, "tls_certificate": tmp_path / "gone.pem"}
        found, detail = stored(tmp_path, archive, [SECONDARY_CAPTURE], **missing)
        assert found == [(TRANSIENT, None)] and detail.startswith("the TLS files cannot be used")
