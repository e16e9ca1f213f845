"""Tokens of identity providers through the whole app and process: who is let in, and who never is."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from api.auth.jwks import fetcher
from api.auth.oidc import MAX_KEYS_BYTES, Issuer, OidcVerifier
from orchestrator.controller import people, tenants
from orchestrator.controller.authority import Authority
from orchestrator.model.actor import CONTROLLER
from orchestrator.model.errors import HostError, InvalidInputError
from orchestrator.processes.control import Running, open_parts
from orchestrator.processes.control_settings import read_control_settings
from orchestrator.store.store import Store
from orchestrator.store.tables.audit import AuditRecordRow
from orchestrator.store.tables.people import PrincipalRow
from orchestrator.store.unit_of_work import table_of
from tests.api.deployment import Deployment, app_over, deploy, key
from tests.api.issuer import LocalIssuer
from tests.api.test_oidc import AUD, BAD, GOOD, ISS, JWKS, NOW_S, made, sign_other
from tests.api.test_oidc import claims as claimed

T = "/v1/tenants/acme"
REFUSED = ((401, "token.invalid"), (401, "token.malformed"))
_PEOPLE, _RECORDS = table_of(PrincipalRow), table_of(AuditRecordRow)


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer() as found:
        yield found


@pytest.fixture
def guarded(deployed: Deployment, issuer: LocalIssuer) -> TestClient:
    """The app with an issuer whose keys are really fetched; `user-1` of it is acme's Ann."""
    verifier = OidcVerifier((Issuer(ISS, AUD, issuer.keys_url),), fetcher(), lambda: NOW_S * 1000)
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        wanted = people.NewPrincipal("ann", "user", ("member",), issuer=ISS, subject="user-1")
        people.create(tx, deployed.tenants["acme"], wanted)
    return TestClient(app_over(deployed.control, verifier), raise_server_exceptions=False)


def shown(client: TestClient, token: str, path: str = T) -> httpx2.Response:
    return client.get(path, headers=[(b"authorization", b"Bearer " + token.encode("utf-8", "surrogatepass"))])


def rows(deployed: Deployment) -> tuple[int, int]:
    with deployed.store.reading() as tx:
        denied = [row for row in tx.all(select(_RECORDS)) if row.kind == "access.denied"]
        return len(tx.all(select(_PEOPLE))), len(denied)


def test_every_good_token_is_its_principal(guarded: TestClient):
    answers = {name: shown(guarded, token) for name, token in GOOD.items()}
    assert {name: (each.status_code, each.json()["name"]) for name, each in answers.items()} == dict.fromkeys(
        GOOD, (200, "acme")
    )


def test_what_it_does_is_recorded_as_that_principal(guarded: TestClient, deployed: Deployment):
    headers = {"Authorization": f"Bearer {made()}", **key()}
    answer = guarded.post(f"{T}/volumes", json={"name": "data", "size_gib": 1}, headers=headers)
    assert answer.status_code == 201
    with deployed.store.reading() as tx:
        ann = tx.scalar(select(_PEOPLE.c.id).where(_PEOPLE.c.name == "ann"))
        record = tx.first(select(_RECORDS.c.body).where(_RECORDS.c.kind == "volume.create"))
    assert record is not None
    assert ann.encode() in record.body


#: A header may have more than one space there (RFC 9110 §11.6.2), so that this one is good.
HERE_GOOD = "space"


def test_every_bad_token_is_nobody(guarded: TestClient, deployed: Deployment, issuer: LocalIssuer):
    """One deployment for all: more than a hundred ways in, and none leaves anything."""
    before = rows(deployed)[0]
    codes, told = {}, []
    for name, token in BAD.items():
        if name != HERE_GOOD:
            answer = shown(guarded, token[:200_000])
            codes[name] = (answer.status_code, answer.json().get("code"))
            told.append(answer.text)
    wrong = {name: code for name, code in codes.items() if code not in REFUSED}
    assert wrong == {}
    assert len(codes) > 100
    assert not any("acme" in each for each in told)
    deployed.control.denials.flush()
    after, denied = rows(deployed)
    assert (after, denied > 0) == (before, True)
    # Whatever a header names, nothing else is fetched.
    assert set(issuer.asked) == {"/keys"}


@pytest.mark.parametrize(
    "token",
    [made(body=claimed(sub="user-2")), made(body=claimed(sub="USER-1")), made(body=claimed(sub="user-1 "))],
)
def test_who_is_not_known_here_is_not_made(guarded: TestClient, deployed: Deployment, token: str):
    before = rows(deployed)[0]
    answer = shown(guarded, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "token.invalid")
    assert rows(deployed)[0] == before


def test_who_is_disabled_is_nobody(guarded: TestClient, deployed: Deployment):
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        tx.note(update(_PEOPLE).where(_PEOPLE.c.name == "ann").values(disabled=True))
    assert shown(guarded, made()).status_code == 401


def test_another_tenant_is_hidden_and_the_platform_forbidden(guarded: TestClient):
    assert shown(guarded, made(), "/v1/tenants/globex").status_code == 404
    assert shown(guarded, made(), "/v1/hosts").status_code == 403


def test_the_same_subject_of_another_issuer_is_somebody_else(deployed: Deployment, issuer: LocalIssuer):
    other = "https://other.example.org"
    trusted = (Issuer(ISS, AUD, issuer.keys_url), Issuer(other, AUD, issuer.keys_url))
    client = TestClient(app_over(deployed.control, OidcVerifier(trusted, fetcher(), lambda: NOW_S * 1000)))
    with deployed.store.unit_of_work(CONTROLLER) as tx:
        wanted = people.NewPrincipal("ann", "user", ("member",), issuer=ISS, subject="user-1")
        people.create(tx, deployed.tenants["acme"], wanted)
    assert shown(client, made()).status_code == 200
    assert shown(client, made(body=claimed(iss=other))).status_code == 401


def test_a_provider_that_is_away_is_told_and_lets_nobody_in(guarded: TestClient, issuer: LocalIssuer):
    issuer.answer = (500, b"")
    answer = shown(guarded, made())
    assert (answer.status_code, answer.json()["code"]) == (503, "oidc.keys_unavailable")


def test_keys_are_fetched_once_for_many_calls(guarded: TestClient, issuer: LocalIssuer):
    for _ in range(5):
        assert shown(guarded, made()).status_code == 200
    assert issuer.asked == ["/keys"]


# -- who may bind whom

OURS, SHARED = "https://id.acme.example", "https://id.example.org"
BOUND = {"name": "mallory", "roles": ["member"]}


@pytest.fixture
def binding(sqlite_store: Store) -> Deployment:
    """Acme's own provider lists acme; the shared one lists nobody."""
    return deploy(sqlite_store, settings={"binders": {OURS: frozenset({"acme"}), SHARED: frozenset()}})


def bind(deployed: Deployment, who: str, tenant: str, issuer: str, **more: str) -> httpx2.Response:
    body = {**BOUND, "issuer": issuer, "subject": "user-1", **more}
    return deployed.client(who).post(f"/v1/tenants/{tenant}/users", json=body, headers=key())


@pytest.mark.parametrize("issuer", [SHARED, "https://nobody.configured.example", OURS + "/", OURS.upper()])
def test_an_admin_binds_no_subject_of_an_issuer_that_does_not_list_the_tenant(
    binding: Deployment, issuer: str
):
    before = rows(binding)
    answer = bind(binding, "acme-admin", "acme", issuer)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (403, "identity.issuer_not_yours")
    assert "operator" in told["hint"]
    assert rows(binding) == (before[0], before[1] + 1)
    with binding.store.reading() as tx:
        record = tx.first(select(_RECORDS.c.body).where(_RECORDS.c.kind == "access.denied"))
    assert record is not None
    assert b"identity.issuer_not_yours" in record.body
    assert binding.people["acme-admin"].who.id.encode() in record.body


def test_a_refused_binding_leaves_the_subject_for_its_owner(binding: Deployment):
    assert bind(binding, "globex-admin", "globex", OURS).status_code == 403
    assert bind(binding, "acme-admin", "acme", OURS).status_code == 201


def test_an_admin_binds_subjects_of_the_tenants_own_issuer(binding: Deployment):
    made = bind(binding, "acme-admin", "acme", OURS)
    assert (made.status_code, made.json()["issuer"], made.json()["subject"]) == (201, OURS, "user-1")


def test_an_id_lists_a_tenant_as_its_name_does(sqlite_store: Store):
    listed = deploy(sqlite_store)
    by_id = replace(
        listed.control,
        settings=replace(listed.control.settings, binders={OURS: frozenset({listed.tenants["globex"]})}),
    )
    listed.app = app_over(by_id)
    assert bind(listed, "acme-admin", "acme", OURS).status_code == 403
    assert bind(listed, "globex-admin", "globex", OURS).status_code == 201


def test_an_operator_binds_any_and_a_user_without_a_subject_needs_no_issuer(binding: Deployment):
    assert bind(binding, "operator", "globex", SHARED).status_code == 201
    plain = binding.client("acme-admin").post("/v1/tenants/acme/users", json=BOUND, headers=key())
    assert plain.status_code == 201


def test_a_dry_run_and_a_repeated_key_are_refused_alike(binding: Deployment):
    body, same = {**BOUND, "issuer": SHARED, "subject": "user-1"}, key()
    admin = binding.client("acme-admin")
    for path in (f"{T}/users?dry_run=true", f"{T}/users", f"{T}/users"):
        assert admin.post(path, json=body, headers=same).status_code == 403


# -- how keys are fetched


def test_a_redirect_is_not_followed(issuer: LocalIssuer):
    issuer.answer, issuer.headers = (302, b""), {"Location": f"{issuer.url}/elsewhere"}
    with pytest.raises(HostError, match="302"):
        fetcher()(issuer.keys_url)
    assert issuer.asked == ["/keys"]


def test_an_answer_without_end_is_cut(issuer: LocalIssuer):
    issuer.answer = (200, b" " * (MAX_KEYS_BYTES + 1))
    with pytest.raises(HostError, match="more than"):
        fetcher()(issuer.keys_url)


def test_a_slow_answer_has_a_deadline_as_a_whole(issuer: LocalIssuer):
    issuer.drip_s = 0.05
    began = time.monotonic()
    with pytest.raises(HostError, match="took more than"):
        fetcher(deadline_s=0.5)(issuer.keys_url)
    assert time.monotonic() - began < 10


def test_nobody_there_is_a_host_error():
    with pytest.raises(HostError, match=r"oidc\.fetch"):
        fetcher(deadline_s=1)("http://127.0.0.1:1/keys")


def test_https_is_believed_from_a_known_authority_only(tmp_path: Path):
    authority = Authority.create(tmp_path / "authority", dt.datetime.now(dt.UTC))
    written = authority.server_certificate(("127.0.0.1",), dt.datetime.now(dt.UTC)).write(tmp_path / "tls")
    with LocalIssuer(written) as issuer:
        assert json.loads(fetcher(authority.certificate_path)(issuer.keys_url)) == {"keys": JWKS}
        with pytest.raises(HostError, match=r"oidc\.fetch"):
            fetcher()(issuer.keys_url)


def test_a_file_of_no_certificates_is_told(tmp_path: Path):
    for content in (None, "no certificate"):
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_text(content)
        with pytest.raises(InvalidInputError) as told:
            fetcher(file)
        assert (told.value.code, told.value.field) == ("oidc.ca_file", "oidc_ca_file")


# -- the whole process, from its settings file


def settings(folder: Path, more: str) -> Path:
    file = folder / "controller.toml"
    file.write_text(
        f'state_dir = "{folder / "state"}"\nallow_keys_in_files = true\n'
        "public_port = 0\nagents_port = 0\n" + more
    )
    return file


def block(issuer: str, keys_url: str) -> str:
    return f'[[issuers]]\nurl = "{issuer}"\naudience = "{AUD}"\nkeys_url = "{keys_url}"\n'


@pytest.mark.parametrize("kind", ["https", "file"])
def test_a_controller_believes_the_issuers_of_its_settings(tmp_path: Path, kind: str):
    authority = Authority.create(tmp_path / "authority", dt.datetime.now(dt.UTC))
    written = authority.server_certificate(("127.0.0.1",), dt.datetime.now(dt.UTC)).write(tmp_path / "tls")
    (tmp_path / "keys.json").write_text(json.dumps({"keys": JWKS}))
    with LocalIssuer(written) as issuer:
        keys_url = issuer.keys_url if kind == "https" else f"file://{tmp_path / 'keys.json'}"
        ca = f'oidc_ca_file = "{authority.certificate_path}"\n'
        parts = open_parts(read_control_settings(settings(tmp_path, ca + block(issuer.url, keys_url))))
        with parts.control.store.unit_of_work(CONTROLLER) as tx:
            acme = tenants.create(tx, "acme", {})
            wanted = people.NewPrincipal("ann", "user", ("member",), issuer=issuer.url, subject="user-1")
            people.create(tx, acme.id, wanted)
        with Running(parts) as running:
            pinned = ssl.create_default_context(cafile=parts.authority.certificate_path)
            with httpx2.Client(verify=pinned, base_url=running.public_url, timeout=60) as client:

                def status(token: str) -> int:
                    return int(client.get(T, headers={"Authorization": f"Bearer {token}"}).status_code)

                now_s = time.time()
                assert status(issuer.token(now_s)) == 200
                assert status(issuer.token(now_s, sub="user-2")) == 401
                assert status(issuer.token(now_s, aud="another")) == 401
                assert status(issuer.token(now_s - 3600)) == 401
                assert status(issuer.token(now_s, iss=ISS)) == 401
                assert (
                    status(made(body=claimed(iss=issuer.url, exp=int(now_s) + 300), sign=sign_other)) == 401
                )
        assert len(issuer.asked) == (1 if kind == "https" else 0)


def test_the_settings_say_which_tenants_bind_an_issuers_subjects(tmp_path: Path):
    more = block(OURS, f"{OURS}/keys") + 'tenants = ["acme"]\n' + block(SHARED, f"{SHARED}/keys")
    parts = open_parts(read_control_settings(settings(tmp_path, more)))
    assert parts.control.settings.binders == {OURS: frozenset({"acme"}), SHARED: frozenset()}


def test_without_issuers_only_our_own_tokens_are_known(tmp_path: Path):
    assert open_parts(read_control_settings(settings(tmp_path, ""))).verifier is None


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (block(ISS, "http://id.example.org/keys"), "issuers[0].keys_url"),
        (block(ISS, f"{ISS}/keys") + block("", f"{ISS}/keys"), "issuers[1].url"),
        (block(ISS, f"{ISS}/keys") * 2, "issuers[1].url"),
        (block(ISS, f"{ISS}/keys") + 'types = ["id+jwt"]\n', "issuers[0].types"),
        (block(ISS, f"{ISS}/keys") + "secret = 1\n", "issuers.0.secret"),
        (block(ISS, f"{ISS}/keys") + 'tenants = ["acme", "*"]\n', "issuers.0.tenants.1"),
        (f'[[issuers]]\nurl = "{ISS}"\n', "issuers.0.audience"),
        ('oidc_ca_file = "/nonexistent/ca.pem"\n' + block(ISS, f"{ISS}/keys"), "oidc_ca_file"),
    ],
)
def test_issuers_that_are_set_wrong_are_told_before_anything_is_made(tmp_path: Path, more: str, field: str):
    with pytest.raises(InvalidInputError) as told:
        open_parts(read_control_settings(settings(tmp_path, more)))
    assert told.value.field == field
    assert not (tmp_path / "state").exists()
