"""The canary scan finds every spelling wherever it is planted, nothing else, and never says the secret."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest

from orchestrator.agent.evidence.canary import Canary
from orchestrator.agent.evidence.needles import Search, needles

#: Bytes that base64's alphabets, hex' cases and percent escapes write in different ways; zero bytes too.
SECRET = bytes.fromhex("00fbefbeff3f2b2fab41cdef7e5d0a00") + b"plain text end\0"
OTHER = bytes(reversed(SECRET))
#: Whole in memory at once; a quarter of the longest spelling, so that every spelling lies across pieces.
SMALL = 64

SPELLINGS = {
    "raw": SECRET,
    "base64": base64.b64encode(SECRET),
    "base64-urlsafe": base64.urlsafe_b64encode(SECRET),
    "hex": SECRET.hex().encode(),
    "hex-upper": SECRET.hex().upper().encode(),
    "percent": quote_from_bytes(SECRET).encode(),
    "utf-16 of base64": base64.b64encode(SECRET).decode().encode("utf-16-be"),
    "utf-16 of hex": SECRET.hex().encode("utf-16-le"),
    "utf-16 of raw": SECRET.decode("latin-1").encode("utf-16-le"),
}
#: Other ways to write it in one of these.
VARIANTS = [
    ("base64", base64.b64encode(b"x" + SECRET + b"yz")),
    ("base64", base64.b64encode(b"key=" + b"x" + SECRET)),
    ("base64", base64.b64encode(b"ke" + SECRET + b"y")),
    ("base64-urlsafe", base64.urlsafe_b64encode(b"x" + SECRET + b"yz")),
    ("percent", "".join(f"%{byte:02x}" for byte in SECRET).encode()),
    ("percent", "".join(f"%{byte:02X}" for byte in SECRET).encode()),
    ("percent", quote_from_bytes(SECRET).replace("%20", "+").encode()),
    ("percent", b"%00%fb%ef%be%ff%3f%2b%2f%abA%cd%ef~%5d%0a%00plain%20text%20end%00"),
]
PLANTED = [*SPELLINGS.items(), *VARIANTS]


def put(root: Path, path: str, content: bytes) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


@pytest.fixture
def root(tmp_path):
    """A host with one process and some files, where the secret is nowhere."""
    put(tmp_path, "proc/7/cmdline", b"qemu\0-name\0guest=vm_a\0")
    put(tmp_path, "proc/7/environ", b"PATH=/bin\0")
    put(tmp_path, "files/a/log", OTHER + b"nothing here " * 100 + base64.b64encode(OTHER))
    return tmp_path


def scan(root: Path, chunk_bytes: int = SMALL) -> Canary:
    canary = Canary(SECRET, root, chunk_bytes)
    canary.processes()
    canary.tree(root / "files")
    return canary


def found(canary: Canary) -> set[tuple[str, str]]:
    return {(hit["where"], hit["encoding"]) for hit in canary.hits}


@pytest.mark.parametrize(("encoding", "text"), PLANTED)
@pytest.mark.parametrize("before", [0, 1, SMALL - 1, 3 * SMALL + 7])
def test_a_file_that_holds_it_is_found(root, encoding, text, before):
    path = put(root, "files/b/deep/leak", b"." * before + text + b".")
    assert (str(path), encoding) in found(scan(root))
    assert {where for where, _ in found(scan(root))} == {str(path)}


@pytest.mark.parametrize(("encoding", "text"), PLANTED)
def test_it_is_found_across_the_border_of_pieces(root, encoding, text):
    """Wherever the border lies in it; in one piece it is found as well."""
    search = Search(needles(SECRET))
    for cut in range(len(text) + 1):
        assert encoding in search.within([b"ab" + text[:cut], text[cut:] + b"cd"])
    assert encoding in search.within(bytes([byte]) for byte in text)


@pytest.mark.parametrize("name", ["cmdline", "environ"])
@pytest.mark.parametrize(("encoding", "text"), PLANTED)
def test_a_process_that_holds_it_is_found(root, name, encoding, text):
    put(root, f"proc/8/{name}", b"program\0--key=" + text + b"\0")
    where = {"cmdline": "argv", "environ": "environ"}[name]
    assert (f"{where} of process 8", encoding) in found(scan(root))


def test_nothing_is_found_where_nothing_is(root):
    canary = scan(root)
    assert canary.report() == {
        "hits": [],
        "scanned": {
            "processes": 1,
            "files": 1,
            "bytes": (root / "files/a/log").stat().st_size,
            "journal_bytes": 0,
            "unreadable": [],
        },
    }


@pytest.mark.parametrize("text", [text[: len(text) * 2 // 3] for _, text in PLANTED])
def test_a_part_of_it_is_not_it(root, text):
    put(root, "files/part", text)
    assert found(scan(root)) == set()


def test_a_sparse_file_is_searched_where_it_has_data(root):
    path = root / "files/sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
        # The first and last bytes of the secret are zeros, which lie in the holes.
        stream.seek((1 << 39) - 1)
        stream.write(SECRET)
    began = time.process_time()
    canary = scan(root, 1 << 20)
    assert found(canary) == {(str(path), "raw")}
    assert canary.counts["bytes"] < 1 << 22
    assert time.process_time() - began < 30, "a terabyte of holes is not read"


def test_zeros_at_the_edge_of_a_hole_belong_to_it(root):
    """The file system gives whole blocks: the secret's last zero is the hole's first byte."""
    path = root / "files/edge"
    block = os.statvfs(root).f_bsize
    with path.open("wb") as stream:
        stream.truncate(1 << 24)
        stream.seek(block * 4 - (len(SECRET) - 1))
        stream.write(SECRET[:-1])
    assert found(scan(root)) == {(str(path), "raw")}


def test_links_are_not_followed_but_their_text_is_read(root):
    put(root, "elsewhere/leak", SECRET)
    (root / "files/out").symlink_to(root / "elsewhere")
    (root / "files/out2").symlink_to(root / "elsewhere/leak")
    assert found(scan(root)) == set()
    (root / "files/telling").symlink_to(SECRET.hex())
    assert found(scan(root)) == {(f"target of {root}/files/telling", "hex")}


def test_names_are_searched_and_not_repeated(root):
    put(root, f"files/{SECRET.hex()}/{SECRET.hex().upper()}", SECRET)
    canary = scan(root)
    assert found(canary) == {
        (f"a name in {root}/files", "hex"),
        (f"a name in {root}/files/(left out)", "hex-upper"),
        (f"{root}/files/(left out)/(left out)", "raw"),
    }
    assert SECRET.hex() not in json.dumps(canary.report()).lower()


def test_pipes_sockets_and_names_of_any_bytes_do_no_harm(root):
    os.mkfifo(root / "files/pipe")
    (root / os.fsdecode(b"files/\xff\n")).write_bytes(SECRET)
    canary = scan(root)
    assert found(canary) == {(f"{root}/files/\\xff\n", "raw")}
    json.dumps(canary.report())
    assert canary.unreadable == []


def test_what_cannot_be_looked_at_is_told(root):
    (root / "proc/9/environ").mkdir(parents=True)
    put(root, "proc/9/cmdline", b"x")
    canary = scan(root)
    canary.tree(root / "nowhere")
    assert canary.unreadable == ["environ of process 9", f"{root}/nowhere"]


def test_no_processes_at_all_is_not_a_clean_host(tmp_path):
    canary = Canary(SECRET, tmp_path)
    canary.processes()
    assert canary.unreadable == ["processes"]


@pytest.mark.parametrize("secret", [b"", b"1234567"])
def test_a_secret_that_chance_would_find_is_refused(secret):
    with pytest.raises(ValueError, match="too short"):
        needles(secret)


@pytest.fixture
def fresh() -> bytes:
    """A secret that no other run of these tests on this machine plants at the same time."""
    return os.urandom(32)


def run(
    secret: bytes, folder: Path, *, path: Path, environ: dict[str, str] | None = None
) -> tuple[int, dict]:
    """Run the program as it is run on a host, with `path` as the only place of programs."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.agent.evidence.canary", str(folder)],
        input=secret,
        capture_output=True,
        check=False,
        timeout=120,
        env={"PATH": str(path), **(environ or {})},
    )
    said = done.stdout.decode() + done.stderr.decode()
    for text in (base64.b64encode(secret).decode(), secret.hex()):
        assert text not in said
    return done.returncode, json.loads(done.stdout)


def journal(folder: Path, content: bytes, status: int = 0) -> Path:
    """Put a journalctl there that says this."""
    folder.mkdir(exist_ok=True)
    (folder / "content").write_bytes(content)
    program = folder / "journalctl"
    program.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"shutil.copyfileobj(open({str(folder / 'content')!r}, 'rb'), sys.stdout.buffer)\n"
        f"sys.exit({status})\n"
    )
    program.chmod(0o755)
    return folder


def test_the_program_finds_files_environment_and_journal_on_the_real_kernel(root, tmp_path, fresh):
    planted = put(root, "files/leak", base64.b64encode(fresh))
    programs = journal(tmp_path / "bin", b"MESSAGE=" + fresh.hex().encode() + b"\n\n")

    status, body = run(fresh, root / "files", path=programs, environ={"LEAK": fresh.hex().upper()})

    hits = {(hit["where"].rstrip("0123456789"), hit["encoding"]) for hit in body["hits"]}
    assert hits == {(str(planted), "base64"), ("environ of process ", "hex-upper"), ("journal", "hex")}
    assert status == 1
    assert body["scanned"]["journal_bytes"] > 0


def test_the_program_finds_argv_on_the_real_kernel(root, tmp_path, fresh):
    leaky = subprocess.Popen([sys.executable, "-c", "input()", fresh.hex()], stdin=subprocess.PIPE)
    try:
        status, body = run(fresh, root / "files", path=tmp_path / "none")
    finally:
        leaky.communicate(b"\n")
    assert body["hits"] == [{"where": f"argv of process {leaky.pid}", "encoding": "hex"}]
    assert status == 1


def test_the_program_finds_nothing_where_nothing_is(root, tmp_path, fresh):
    status, body = run(fresh, root / "files", path=journal(tmp_path / "bin", b"MESSAGE=fine\n"))
    assert body["hits"] == []
    # Not everybody may look at every process; then it says so.
    assert status == (2 if body["scanned"]["unreadable"] else 0)
    assert body["scanned"]["processes"] > 1


def test_a_journal_that_cannot_be_read_is_told(root, tmp_path, fresh):
    status, body = run(fresh, root / "files", path=journal(tmp_path / "bin", b"", status=1))
    assert "journal" in body["scanned"]["unreadable"]
    assert status == 2
