"""Who a host is: files for it alone, renewal in time, and no certificate taken that is not its own."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest

from orchestrator.agent.link.certificates import Certificates, FreshKey
from orchestrator.controller.authority import Authority
from orchestrator.model.errors import BulkheadError
from orchestrator.model.protocol import EnrolAnswer, RenewAnswer
from tests.unit.link.listener import NOW

HOST = "hst_one"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", NOW)


def enrolled(authority: Authority, folder: Path, days: int = 30) -> Certificates:
    made, key = Certificates(folder), FreshKey.make()
    made.enrol(key, answer(authority, key, days=days), authority.certificate_pem)
    return made


def answer(authority: Authority, key: FreshKey, *, host: str = HOST, days: int = 30) -> EnrolAnswer:
    return EnrolAnswer(
        certificate_pem=authority.sign_host(key.csr_pem, host, NOW, days=days),
        ca_pem=authority.certificate_pem,
        host=HOST,
        deployment="dep_a",
        agents_url="https://127.0.0.1:1",
    )


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_identity_is_kept_for_its_host_alone(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "link"
    found = enrolled(authority, folder).identity()

    assert (found.host, found.deployment, found.agents_url) == (HOST, "dep_a", "https://127.0.0.1:1")
    assert found.not_after == NOW + dt.timedelta(days=30)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == dict.fromkeys(
        ("identity.pem", "authority.pem", "enrolment.json"), 0o600
    )
    assert "PRIVATE" not in repr(FreshKey.make())


@pytest.mark.parametrize(("day", "due"), [(0, False), (19, False), (20, True), (29, True), (31, True)])
def test_renewal_is_due_when_a_third_is_left(
    authority: Authority, tmp_path: Path, day: int, due: bool
) -> None:
    identity = enrolled(authority, tmp_path / "link").identity()

    assert identity.renewal_due(NOW + dt.timedelta(days=day)) is due


def test_second_enrolment_is_refused(authority: Authority, tmp_path: Path) -> None:
    made, key = enrolled(authority, tmp_path / "link"), FreshKey.make()
    before = files(tmp_path / "link")

    with pytest.raises(BulkheadError) as refused:
        made.enrol(key, answer(authority, key), authority.certificate_pem)

    assert refused.value.code == "agent.enrolled"
    assert files(tmp_path / "link") == before


def test_nothing_is_kept_of_a_certificate_that_is_no_use(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", NOW)
    key, another = FreshKey.make(), FreshKey.make()
    good = answer(authority, key)
    rubbish = "-----BEGIN CERTIFICATE-----\nabcd\n-----END CERTIFICATE-----\n"
    cases = [
        ("link.untrusted", answer(other, key)),
        ("link.bad_certificate", answer(authority, another)),
        ("link.bad_certificate", answer(authority, key, host="hst_two")),
        (
            "link.bad_certificate",
            good.model_copy(update={"certificate_pem": answer(other, key).certificate_pem}),
        ),
        ("link.bad_certificate", good.model_copy(update={"certificate_pem": rubbish})),
        ("link.bad_certificate", good.model_copy(update={"certificate_pem": authority.certificate_pem})),
    ]
    for code, bad in cases:
        made = Certificates(tmp_path / "link")
        with pytest.raises(BulkheadError) as refused:
            made.enrol(key, bad, authority.certificate_pem)
        assert (refused.value.code, refused.value.retryable) == (code, False)
        assert made.enrolled is False
    assert Certificates(tmp_path / "link").enrol(key, good, authority.certificate_pem).host == HOST


def test_enrolment_that_was_cut_off_is_none(authority: Authority, tmp_path: Path) -> None:
    """The token is gone then; the next one starts afresh."""
    made = enrolled(authority, tmp_path / "link")
    (tmp_path / "link" / "enrolment.json").unlink()

    assert made.enrolled is False
    with pytest.raises(BulkheadError) as refused:
        made.identity()
    assert refused.value.code == "agent.not_enrolled"
    assert enrolled(authority, tmp_path / "link").identity().host == HOST


def test_renewal_takes_a_new_key_and_the_same_host(authority: Authority, tmp_path: Path) -> None:
    made, key = enrolled(authority, tmp_path / "link", days=1), FreshKey.make()
    before = files(tmp_path / "link")

    found = made.renew(key, RenewAnswer(certificate_pem=authority.sign_host(key.csr_pem, HOST, NOW)))

    assert found.not_after == NOW + dt.timedelta(days=30)
    after = files(tmp_path / "link")
    assert after["identity.pem"] != before["identity.pem"]
    assert {name: after[name] for name in ("authority.pem", "enrolment.json")} == {
        name: before[name] for name in ("authority.pem", "enrolment.json")
    }
    made.tls()


def test_renewal_with_anothers_certificate_leaves_the_old_one(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", NOW)
    made, key = enrolled(authority, tmp_path / "link"), FreshKey.make()
    before = files(tmp_path / "link")
    for signed in (
        authority.sign_host(key.csr_pem, "hst_two", NOW),
        authority.sign_host(FreshKey.make().csr_pem, HOST, NOW),
        other.sign_host(key.csr_pem, HOST, NOW),
    ):
        with pytest.raises(BulkheadError) as refused:
            made.renew(key, RenewAnswer(certificate_pem=signed))
        assert refused.value.code == "link.bad_certificate"
        assert files(tmp_path / "link") == before


@pytest.mark.parametrize("name", ["identity.pem", "enrolment.json", "authority.pem"])
def test_damage_is_told_without_showing_the_file(authority: Authority, tmp_path: Path, name: str) -> None:
    made = enrolled(authority, tmp_path / "link")
    (tmp_path / "link" / name).write_text("hunter2")

    def read() -> None:
        made.identity()
        made.tls()

    with pytest.raises(BulkheadError) as refused:
        read()

    assert refused.value.code == "agent.identity_damaged"
    assert "hunter2" not in refused.value.explain()
    assert refused.value.__cause__ is None


def test_a_host_comes_in_again_as_itself_alone(authority: Authority, tmp_path: Path) -> None:
    made = enrolled(authority, tmp_path / "link", days=1)
    key = FreshKey.make()
    found = made.enrol(key, answer(authority, key), authority.certificate_pem, again=True)
    assert found.not_after == NOW + dt.timedelta(days=30)

    before = files(tmp_path / "link")
    for other in ({"host": "hst_two"}, {"deployment": "dep_b"}):
        with pytest.raises(BulkheadError) as refused:
            made.enrol(
                key, answer(authority, key).model_copy(update=other), authority.certificate_pem, again=True
            )
        assert (refused.value.code, HOST in refused.value.message) == ("agent.another_host", True)
        assert files(tmp_path / "link") == before
    (tmp_path / "link" / "identity.pem").write_text("damaged")
    assert made.enrol(key, answer(authority, key), authority.certificate_pem, again=True).host == HOST
    (tmp_path / "link" / "enrolment.json").write_text("damaged")
    with pytest.raises(BulkheadError) as lost:
        made.enrol(key, answer(authority, key), authority.certificate_pem, again=True)
    assert lost.value.code == "agent.identity_damaged"
