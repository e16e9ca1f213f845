"""What a host's disks must promise."""

from __future__ import annotations

import pytest

from images.labhost.tenants import DEPLOYMENT
from orchestrator.agent.volumes.nocloud import seed_files
from orchestrator.model.errors import NotFoundError


@pytest.fixture
def volume(target):
    chosen = target.instance.volumes[0]
    yield chosen
    target.host.volumes.erase(chosen.id)


def create(target, volume):
    target.host.volumes.create(
        volume,
        deployment=DEPLOYMENT,
        tenant=target.instance.tenant,
        passphrase=target.host.keys.passphrase(volume.id, volume.generation),
    )


def test_created_volume_is_observed_complete_with_its_owner(target, volume):
    create(target, volume)

    found = [v for v in target.host.volumes.observe() if v.volume == volume.id]
    assert [(v.complete, v.generation, v.tenant, v.deployment, v.size_bytes) for v in found] == [
        (True, volume.generation, target.instance.tenant, DEPLOYMENT, volume.size_gib << 30)
    ]


def test_erased_volume_is_gone_and_erasing_again_is_fine(target, volume):
    create(target, volume)

    target.host.volumes.erase(volume.id)
    target.host.volumes.erase(volume.id)

    assert not [v for v in target.host.volumes.observe() if v.volume == volume.id]


def test_image_that_is_not_here_leaves_no_complete_volume(target, volume):
    image = volume.image.model_copy(update={"digest": "sha256:" + "e" * 64})

    with pytest.raises(NotFoundError) as refused:
        create(target, volume.model_copy(update={"image": image}))

    assert refused.value.code == "image.not_found"
    assert not [v for v in target.host.volumes.observe() if v.volume == volume.id and v.complete]


def test_seed_is_observed_with_its_generation_and_can_be_replaced(target):
    name = target.instance.id
    target.host.seeds.write(name, 1, seed_files(target.instance))
    target.host.seeds.write(name, 2, seed_files(target.instance))

    assert [s.generation for s in target.host.seeds.observe() if s.instance == name] == [2]

    target.host.seeds.remove(name)
    target.host.seeds.remove(name)
    assert not [s for s in target.host.seeds.observe() if s.instance == name]
