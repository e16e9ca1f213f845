"""`bulkhead type ...`: the shapes that tenants choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import checks
from orchestrator.cli.columns import Column, time
from orchestrator.cli.options import DEFAULT_TIMEOUT, DryRunOption, OutputOption
from orchestrator.cli.running import finish, waiting
from orchestrator.cli.session import session_of
from orchestrator.cli.verbs import Kind, add_delete, add_list, add_show
from orchestrator.client import JsonObject
from orchestrator.model.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_PAGE_KIB = (4, 2048, 1048576)
_ISOLATION = ("dedicated", "mig-vgpu", "fabric")

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("vcpus", "vcpus", number=True),
    Column("memory_mib", "memory_mib", number=True),
    Column("gpus", "gpus", number=True),
    Column("gpu_model", "gpu_model"),
    Column("disk_gib", "disk_gib", number=True),
    Column("isolation", "isolation"),
    Column("id", "id", wide=True),
    Column("page_kib", "page_size_kib", wide=True, number=True),
    Column("threads", "threads_per_core", wide=True, number=True),
    Column("created", time("created_at"), wide=True),
)
KIND = Kind("instance type", COLUMNS, of_platform=lambda client: client.instance_types)

add_list(app, KIND, "List instance types.")
add_show(app, KIND, "Show one instance type.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, max=4096, help="Virtual CPUs, each a thread.")],
    memory_mib: Annotated[int, typer.Option("--memory-mib", min=1, max=2**30, help="Memory in MiB.")],
    disk_gib: Annotated[int, typer.Option("--disk-gib", min=1, max=10**6, help="Boot volume in GiB.")],
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=64, help="Whole GPUs.")] = 0,
    gpu_model: Annotated[
        str | None, typer.Option("--gpu-model", metavar="IDS", help="PCI ids, 10de:2330; any without.")
    ] = None,
    page_size_kib: Annotated[
        int, typer.Option("--page-size-kib", help="Pages of memory: 4, 2048 or 1048576.")
    ] = 2048,
    threads_per_core: Annotated[
        int,
        typer.Option("--threads-per-core", min=1, max=2, help="2 gives it whole cores with both threads."),
    ] = 1,
    isolation: Annotated[
        str, typer.Option("--isolation", metavar="CLASS", help="dedicated, mig-vgpu or fabric.")
    ] = "dedicated",
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Offer a shape. To change one, make another and delete the old.

    \b
    bulkhead type create gpu-1 --vcpus 8 --memory-mib 65536 --gpus 1 \\
      --disk-gib 100
    """
    session = session_of(context)
    form = session.form(output, None, False)
    if page_size_kib not in _PAGE_KIB:
        raise InvalidInputError("instance_type.page_size", "4, 2048 or 1048576", field="--page-size-kib")
    if isolation not in _ISOLATION:
        raise InvalidInputError("instance_type.isolation", " or ".join(_ISOLATION), field="--isolation")
    if gpu_model is not None and not gpus:
        raise InvalidInputError("instance_type.no_gpu", "a GPU model needs a GPU", field="--gpu-model")
    body: JsonObject = {
        "name": checks.name("instance type", name),
        "vcpus": vcpus,
        "memory_mib": memory_mib,
        "page_size_kib": page_size_kib,
        "threads_per_core": threads_per_core,
        "gpus": gpus,
        "gpu_model": None
        if gpu_model is None
        else checks.gpu_model(gpu_model, code="instance_type.gpu_model", field="--gpu-model"),
        "disk_gib": disk_gib,
        "isolation": isolation,
    }
    with session.client() as client:
        finish(
            client,
            client.instance_types.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            subject=client.instance_types[name],
            done=f"instance type {name} offered",
        )


add_delete(app, KIND, "Offer a shape no longer; instances made of it stay as they are.")
