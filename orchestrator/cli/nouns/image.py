"""`bulkhead image ...`: what instances boot, by content."""

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

#: Enough of a digest to tell images apart; the whole one is in `wide`.
_SHORT_DIGEST = len("sha256:") + 12

COLUMNS = (
    Column("name", "name", flexible=True),
    Column("firmware", "firmware"),
    Column("mib", lambda item: -(-int(item.get("size_bytes") or 0) // 2**20), number=True),
    Column("content", lambda item: str(item.get("digest", ""))[:_SHORT_DIGEST]),
    Column("id", "id"),
    Column("tenant", "tenant_id", wide=True),
    Column("digest", "digest", wide=True),
    Column("created", time("created_at"), wide=True),
)
KIND = Kind("image", COLUMNS, of_platform=lambda client: client.images)

add_list(app, KIND, "List images: everybody's, and your tenant's own.")
add_show(app, KIND, "Show one image.")


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    digest: Annotated[
        str, typer.Option("--digest", metavar="SHA256", help="sha256: and the digest of its bytes.")
    ],
    size_bytes: Annotated[int, typer.Option("--size-bytes", min=512, max=2**50 - 1, help="Its size.")],
    firmware: Annotated[str, typer.Option("--firmware", metavar="KIND", help="uefi or bios.")] = "uefi",
    owner: Annotated[
        str | None, typer.Option("--for-tenant", metavar="TENANT", help="For this tenant alone.")
    ] = None,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Register an image that lies on the hosts, by its content.

    \b
    bulkhead image create debian-13 --size-bytes 2147483648 \\
      --digest sha256:$(sha256sum debian-13.raw | cut -d' ' -f1)
    """
    session = session_of(context)
    form = session.form(output, None, False)
    if firmware not in ("uefi", "bios"):
        raise InvalidInputError("image.firmware", "it is uefi or bios", field="--firmware")
    body: JsonObject = {
        "name": checks.name("image", name),
        "digest": checks.digest(digest),
        "size_bytes": size_bytes,
        "firmware": firmware,
    }
    if owner is not None:
        body["tenant"] = checks.reference("tenant", owner)
    with session.client() as client:
        finish(
            client,
            client.images.create(body, dry_run=dry_run),
            waiting(False, DEFAULT_TIMEOUT, dry_run),
            operations=client.operations,
            columns=COLUMNS,
            form=form,
            subject=client.images[name],
            done=f"image {name} registered",
        )


add_delete(app, KIND, "Forget an image; instances made of it keep running.")
