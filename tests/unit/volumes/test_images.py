from __future__ import annotations

import os

import pytest

from images.verify import import_image, main
from orchestrator.model.errors import BulkheadError, ConflictError, NotFoundError

#: What qemu-img takes for a VMDK with the host's file as its extent when nobody says raw.
VMDK_TEXT = (
    b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
    b'createType="monolithicFlat"\nRW 8 FLAT "/etc/hostname" 0\n'
)


def code_of(disks, image) -> str:
    with pytest.raises(BulkheadError) as refused:
        with disks.images.verified(image):
            pass
    return refused.value.code


def test_verified_image_is_what_its_digest_says(disks):
    with disks.images.verified(disks.image) as fd:
        assert os.pread(fd, len(disks.content), 0) == disks.content


def test_two_may_read_one_image_at_once(disks):
    with disks.images.verified(disks.image):
        with disks.images.verified(disks.image) as fd:
            assert os.pread(fd, len(disks.content), 0) == disks.content


def test_changed_content_is_refused(disks):
    path = disks.images.path(disks.image.digest)
    path.chmod(0o600)
    path.write_bytes(disks.content[:-1] + bytes([disks.content[-1] ^ 1]))

    assert code_of(disks, disks.image) == "image.digest_mismatch"


def test_other_size_than_declared_is_refused(disks):
    assert code_of(disks, disks.image.model_copy(update={"size_bytes": 4096})) == "image.size_mismatch"


def test_missing_and_linked_images_are_not_found(disks):
    absent = disks.image.model_copy(update={"digest": "sha256:" + "e" * 64})
    assert code_of(disks, absent) == "image.not_found"

    disks.images.path(absent.digest).symlink_to(disks.images.path(disks.image.digest))
    assert code_of(disks, absent) == "image.not_found"


def test_image_changed_while_it_is_read_fails_the_reader(disks):
    reading = disks.images.verified(disks.image)
    reading.__enter__()
    path = disks.images.path(disks.image.digest)
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.write(b"evil")

    with pytest.raises(ConflictError) as refused:
        reading.__exit__(None, None, None)
    assert refused.value.code == "image.changed"


def test_image_changed_while_it_is_written_leaves_no_volume(disks, monkeypatch):
    from orchestrator.agent.volumes import luks

    def meddle(*args, real=luks.write_image):
        real(*args)
        path = disks.images.path(disks.image.digest)
        path.chmod(0o600)
        with path.open("r+b") as stream:
            stream.write(b"evil")

    monkeypatch.setattr(luks, "write_image", meddle)
    with pytest.raises(ConflictError) as refused:
        disks.create()

    assert refused.value.code == "image.changed"
    assert disks.left() == []


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (VMDK_TEXT.ljust(4096, b"\n"), "vmdk"),
        (b"QFI\xfb\x00\x00\x00\x03" + bytes(4096), "qcow2"),
        (b"KDMV\x01\x00\x00\x00" + bytes(4096), "vmdk"),
        (b"LUKS\xba\xbe\x00\x01" + bytes(4096), "luks"),
    ],
)
def test_disguised_image_is_refused_on_import_and_on_use(disks, content, looks_like):
    with pytest.raises(ConflictError) as refused:
        disks.add(content)
    assert refused.value.code == "image.format_refused"
    assert looks_like in refused.value.message

    import hashlib

    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    disks.images.path(digest).write_bytes(content)
    image = disks.image.model_copy(update={"digest": digest, "size_bytes": len(content)})
    assert code_of(disks, image) == "image.format_refused"


def test_disguised_image_stays_bytes_even_behind_the_inspector(disks, monkeypatch):
    monkeypatch.setattr("orchestrator.agent.volumes.images.refuse_other_format", lambda fd: None)
    from tests.unit.volumes.test_volumes import read_back

    disks.content = VMDK_TEXT.ljust(4096, b"\n")
    disks.create(disks.volume(image=disks.add(disks.content)))

    assert read_back(disks, disks.passphrase) == disks.content


def test_import_prints_the_reference_and_refuses_another_digest(disks, capsys):
    source, cache = disks.root / "source.raw", disks.root / "elsewhere"

    assert import_image(source, cache) == disks.image
    assert main([str(source), "--cache", str(cache)]) == 0
    assert disks.image.digest in capsys.readouterr().out
    assert main([str(source), "--cache", str(cache), "--digest", "sha256:" + "0" * 64]) != 0
    assert "image.digest_mismatch" in capsys.readouterr().err


def test_import_of_a_missing_file_leaves_nothing(disks):
    with pytest.raises(BulkheadError):
        import_image(disks.root / "none", disks.root / "elsewhere")
    assert list((disks.root / "elsewhere").iterdir()) == []


def test_digest_of_another_form_names_no_path(disks):
    with pytest.raises(BulkheadError) as refused:
        disks.images.path("sha256:../../etc/passwd")
    assert not isinstance(refused.value, NotFoundError)
