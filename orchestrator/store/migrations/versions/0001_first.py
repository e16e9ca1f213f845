"""The controller's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from orchestrator.store.tables.columns import JSON_TYPE

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_record",
        sa.Column("stream", sa.String(length=44), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=63), nullable=False),
        sa.Column("subject_id", sa.String(length=44), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("commitment", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "seq"),
    )
    op.create_index("ix_audit_record_at_ms", "audit_record", ["at_ms"], unique=False)
    op.create_index("ix_audit_record_subject_id", "audit_record", ["subject_id"], unique=False)

    op.create_table(
        "audit_stream",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("next_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "deployment",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("observe_only", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "gpu_edge",
        sa.Column("before", sa.String(length=16), nullable=False),
        sa.Column("after", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("before", "after"),
    )
    op.create_table(
        "host",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("applied_epoch", sa.BigInteger(), nullable=False),
        sa.Column("applied_revision", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.Column("disk_gib", sa.BigInteger(), nullable=False),
        sa.Column("used_disk_gib", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("reported_ms", sa.BigInteger(), nullable=True),
        sa.Column("heard_ms", sa.BigInteger(), nullable=True),
        sa.Column("error", JSON_TYPE, nullable=True),
        sa.Column("strays", JSON_TYPE, nullable=False),
        sa.Column("evidence", JSON_TYPE, nullable=True),
        sa.Column("drain", JSON_TYPE, nullable=True),
        sa.Column("doctor", JSON_TYPE, nullable=True),
        sa.Column("doctor_asked_ms", sa.BigInteger(), nullable=True),
        sa.Column("cordoned_by", sa.String(length=16), nullable=False),
        sa.Column("evacuation_id", sa.String(length=44), nullable=True),
        sa.CheckConstraint("used_disk_gib >= 0 AND used_disk_gib <= disk_gib", name="host_disk"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "host_name",
        "host",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state <> 'removed'"),
        postgresql_where=sa.text("state <> 'removed'"),
    )

    op.create_table(
        "idempotency_key",
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("principal_id", sa.String(length=44), nullable=False),
        sa.Column("route", sa.String(length=120), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("body_mac", sa.String(length=64), nullable=False),
        sa.Column("operation_id", sa.String(length=44), nullable=True),
        sa.Column("subject_id", sa.String(length=44), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "principal_id", "route", "key"),
    )
    op.create_index("ix_idempotency_key_created_ms", "idempotency_key", ["created_ms"], unique=False)

    op.create_table(
        "instance_type",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("page_size_kib", sa.Integer(), nullable=False),
        sa.Column("threads_per_core", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_model", sa.String(length=9), nullable=True),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("owner", sa.String(length=63), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "rate_bucket",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("level_milli", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "tenant",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("keys_destroyed_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "tenant_name",
        "tenant",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state <> 'deleted'"),
        postgresql_where=sa.text("state <> 'deleted'"),
    )

    op.create_table(
        "host_certificate",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.Column("issued_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.Column("told", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    op.create_index("ix_host_certificate_host_id", "host_certificate", ["host_id"], unique=False)

    op.create_table(
        "host_doctor",
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("boot_id", sa.String(length=128), nullable=False),
        sa.Column("findings", JSON_TYPE, nullable=False),
        sa.Column("passes_left_out", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.PrimaryKeyConstraint("host_id"),
    )
    op.create_table(
        "host_facts",
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("topology", sa.String(length=64), nullable=False),
        sa.Column("facts", JSON_TYPE, nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["host.id"]),
        sa.PrimaryKeyConstraint("host_id"),
    )
    op.create_table(
        "host_memory",
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("page_size_kib", sa.Integer(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("used >= 0 AND used <= total", name="host_memory_used"),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.PrimaryKeyConstraint("host_id", "node", "page_size_kib"),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=True),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("firmware", sa.String(length=8), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index("ix_image_tenant_id", "image", ["tenant_id"], unique=False)

    op.create_table(
        "join_token",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_join_token_host_id", "join_token", ["host_id"], unique=False)

    op.create_table(
        "network",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("cidr", sa.String(length=18), nullable=False),
        sa.Column("vlan", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("vlan BETWEEN 1 AND 4094", name="network_vlan_range"),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "name", name="network_name"),
        sa.UniqueConstraint("vlan", name="network_vlan"),
    )
    op.create_index("ix_network_tenant_id", "network", ["tenant_id"], unique=False)

    op.create_table(
        "operation",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=True),
        sa.Column("kind", sa.String(length=63), nullable=False),
        sa.Column("subject_kind", sa.String(length=32), nullable=False),
        sa.Column("subject_id", sa.String(length=44), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("steps", JSON_TYPE, nullable=False),
        sa.Column("error", JSON_TYPE, nullable=True),
        sa.Column("result", JSON_TYPE, nullable=True),
        sa.Column("principal_id", sa.String(length=44), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_operation_subject_id", "operation", ["subject_id"], unique=False)
    op.create_index("operation_list", "operation", ["tenant_id", "created_ms", "id"], unique=False)

    op.create_table(
        "principal",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("roles", JSON_TYPE, nullable=False),
        sa.Column("issuer", sa.String(length=256), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "name", name="principal_name"),
    )
    op.create_index("ix_principal_tenant_id", "principal", ["tenant_id"], unique=False)
    op.create_index(
        "principal_subject",
        "principal",
        ["issuer", "subject"],
        unique=True,
        sqlite_where=sa.text("subject <> ''"),
        postgresql_where=sa.text("subject <> ''"),
    )

    op.create_table(
        "quota",
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("limit_instances", sa.BigInteger(), nullable=False),
        sa.Column("used_instances", sa.BigInteger(), nullable=False),
        sa.Column("limit_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("used_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("limit_memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("used_memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("limit_gpus", sa.BigInteger(), nullable=False),
        sa.Column("used_gpus", sa.BigInteger(), nullable=False),
        sa.Column("limit_volumes", sa.BigInteger(), nullable=False),
        sa.Column("used_volumes", sa.BigInteger(), nullable=False),
        sa.Column("limit_disk_gib", sa.BigInteger(), nullable=False),
        sa.Column("used_disk_gib", sa.BigInteger(), nullable=False),
        sa.Column("limit_networks", sa.BigInteger(), nullable=False),
        sa.Column("used_networks", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("used_disk_gib >= 0 AND used_disk_gib <= limit_disk_gib", name="quota_disk_gib"),
        sa.CheckConstraint("used_gpus >= 0 AND used_gpus <= limit_gpus", name="quota_gpus"),
        sa.CheckConstraint(
            "used_instances >= 0 AND used_instances <= limit_instances", name="quota_instances"
        ),
        sa.CheckConstraint(
            "used_memory_mib >= 0 AND used_memory_mib <= limit_memory_mib", name="quota_memory_mib"
        ),
        sa.CheckConstraint("used_networks >= 0 AND used_networks <= limit_networks", name="quota_networks"),
        sa.CheckConstraint("used_vcpus >= 0 AND used_vcpus <= limit_vcpus", name="quota_vcpus"),
        sa.CheckConstraint("used_volumes >= 0 AND used_volumes <= limit_volumes", name="quota_volumes"),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "removal",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.String(length=44), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=True),
        sa.Column("ordered_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host_id", "kind", "subject_id", "generation", name="removal_once"),
    )
    op.create_index("ix_removal_subject_id", "removal", ["subject_id"], unique=False)
    op.create_index(
        "removal_open",
        "removal",
        ["host_id"],
        unique=False,
        sqlite_where=sa.text("done_ms IS NULL"),
        postgresql_where=sa.text("done_ms IS NULL"),
    )

    op.create_table(
        "instance",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("desired", sa.String(length=8), nullable=False),
        sa.Column("type_name", sa.String(length=63), nullable=False),
        sa.Column("image_id", sa.String(length=44), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("page_size_kib", sa.Integer(), nullable=False),
        sa.Column("threads_per_core", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_model", sa.String(length=9), nullable=True),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=False),
        sa.Column("firmware", sa.String(length=8), nullable=False),
        sa.Column("user_data_bytes", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=True),
        sa.Column("placement", JSON_TYPE, nullable=True),
        sa.Column("error", JSON_TYPE, nullable=True),
        sa.Column("evidence", JSON_TYPE, nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("on_drain", sa.String(length=8), nullable=False),
        sa.Column("drain_deadline_s", sa.Integer(), nullable=True),
        sa.Column("rebuilt", JSON_TYPE, nullable=True),
        sa.Column("operation_id", sa.String(length=44), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["image.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "instance_name",
        "instance",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("state <> 'deleted'"),
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_index("ix_instance_host_id", "instance", ["host_id"], unique=False)
    op.create_index("instance_list", "instance", ["tenant_id", "created_ms", "id"], unique=False)

    op.create_table(
        "token",
        sa.Column("key_id", sa.String(length=44), nullable=False),
        sa.Column("principal_id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("scopes", JSON_TYPE, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"],
            ["principal.id"],
        ),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_index("ix_token_principal_id", "token", ["principal_id"], unique=False)

    op.create_table(
        "claim",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("unit", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host_id", "kind", "unit", name="claim_unit"),
    )
    op.create_index("ix_claim_host_id", "claim", ["host_id"], unique=False)
    op.create_index("ix_claim_instance_id", "claim", ["instance_id"], unique=False)
    op.create_index("ix_claim_tenant_id", "claim", ["tenant_id"], unique=False)

    op.create_table(
        "console_ticket",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("principal_id", sa.String(length=44), nullable=False),
        sa.Column("token_id", sa.String(length=44), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_console_ticket_expires_ms", "console_ticket", ["expires_ms"], unique=False)
    op.create_index("ix_console_ticket_instance_id", "console_ticket", ["instance_id"], unique=False)
    op.create_index("ix_console_ticket_tenant_id", "console_ticket", ["tenant_id"], unique=False)

    op.create_table(
        "stream_order",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("last_bytes", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=512), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_stream_order_expires_ms", "stream_order", ["expires_ms"], unique=False)
    op.create_index("ix_stream_order_host_id", "stream_order", ["host_id"], unique=False)
    op.create_index("ix_stream_order_instance_id", "stream_order", ["instance_id"], unique=False)
    op.create_index("ix_stream_order_tenant_id", "stream_order", ["tenant_id"], unique=False)

    op.create_table(
        "gpu",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("address", sa.String(length=16), nullable=False),
        sa.Column("vendor", sa.String(length=4), nullable=False),
        sa.Column("device", sa.String(length=4), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("previous", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tenancy", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=True),
        sa.Column("instance_id", sa.String(length=44), nullable=True),
        sa.Column("evidence", JSON_TYPE, nullable=True),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(state IN ('claimed', 'exposed', 'releasing')) = (instance_id IS NOT NULL) OR "
            "state IN ('quarantined', 'missing')",
            name="gpu_holder",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["previous", "state"], ["gpu_edge.before", "gpu_edge.after"], name="gpu_step"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host_id", "address", name="gpu_address"),
    )
    op.create_index("ix_gpu_host_id", "gpu", ["host_id"], unique=False)
    op.create_index("ix_gpu_instance_id", "gpu", ["instance_id"], unique=False)
    op.create_index("ix_gpu_tenant_id", "gpu", ["tenant_id"], unique=False)
    op.create_index("gpu_list", "gpu", ["created_ms", "id"], unique=False)

    op.create_table(
        "port",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("network_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("mac", sa.String(length=17), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("prefix_length", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["network_id"],
            ["network.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("mac", name="port_mac"),
        sa.UniqueConstraint("network_id", "address", name="port_address"),
    )
    op.create_index("ix_port_instance_id", "port", ["instance_id"], unique=False)
    op.create_index("ix_port_network_id", "port", ["network_id"], unique=False)
    op.create_index("ix_port_tenant_id", "port", ["tenant_id"], unique=False)

    op.create_table(
        "request",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("on_no_capacity", sa.String(length=8), nullable=False),
        sa.Column("reason", JSON_TYPE, nullable=True),
        sa.Column("reason_ms", sa.BigInteger(), nullable=True),
        sa.Column("submitted_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_request_instance_id", "request", ["instance_id"], unique=False)
    op.create_index("request_list", "request", ["tenant_id", "submitted_ms", "id"], unique=False)
    op.create_index("request_all", "request", ["submitted_ms", "id"], unique=False)
    op.create_index(
        "request_waiting",
        "request",
        ["submitted_ms", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )

    op.create_table(
        "volume",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("name", sa.String(length=70), nullable=False),
        sa.Column("size_gib", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.String(length=44), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=True),
        sa.Column("instance_id", sa.String(length=44), nullable=True),
        sa.Column("boot", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["image.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_volume_host_id", "volume", ["host_id"], unique=False)
    op.create_index("ix_volume_instance_id", "volume", ["instance_id"], unique=False)
    op.create_index("volume_list", "volume", ["tenant_id", "created_ms", "id"], unique=False)
    op.create_index(
        "volume_name",
        "volume",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("state <> 'deleted'"),
        postgresql_where=sa.text("state <> 'deleted'"),
    )

    op.create_table(
        "wrapped_key",
        sa.Column("volume_id", sa.String(length=44), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volume.id"],
        ),
        sa.PrimaryKeyConstraint("volume_id", "generation"),
    )
    op.create_index("ix_wrapped_key_tenant_id", "wrapped_key", ["tenant_id"], unique=False)

    op.create_table(
        "user_data",
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("key_nonce", sa.LargeBinary(), nullable=False),
        sa.Column("key_ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("instance_id"),
    )
    op.create_index("ix_user_data_tenant_id", "user_data", ["tenant_id"], unique=False)

    op.create_table(
        "stale_instance",
        sa.Column("id", sa.String(length=44), nullable=False),
        sa.Column("host_id", sa.String(length=44), nullable=False),
        sa.Column("instance_id", sa.String(length=44), nullable=False),
        sa.Column("tenant_id", sa.String(length=44), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("placement", JSON_TYPE, nullable=False),
        sa.Column("page_size_kib", sa.Integer(), nullable=False),
        sa.Column("volume_id", sa.String(length=44), nullable=True),
        sa.Column("volume_generation", sa.BigInteger(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"],
            ["host.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volume.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host_id", "instance_id", name="stale_once"),
    )
    op.create_index("ix_stale_instance_instance_id", "stale_instance", ["instance_id"], unique=False)
    op.create_index("ix_stale_instance_tenant_id", "stale_instance", ["tenant_id"], unique=False)

    _protect_the_log()
    _tell_the_others()


def _protect_the_log() -> None:
    """Records are never changed or taken away."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_record_{verb.lower()} BEFORE {verb} ON audit_record "
                "BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_record_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION 'audit records are never changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_record_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_record "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_record_refuse()"
    )


#: Table, what must happen to it, and the topic that is told; with a colon the row's id follows, of a stream
#: its host's.
_TOLD = (
    ("audit_stream", "UPDATE", "stream:"),
    ("operation", "UPDATE", "operation:"),
    # A placement and a release raise the generation, a new order the revision; the doctor may be asked.
    ("host", "UPDATE OF generation, revision, doctor_asked_ms", "host:"),
    ("host", "UPDATE OF generation", "scheduler"),
    ("request", "INSERT", "scheduler"),
    ("stream_order", "INSERT", "streams:"),
)


def _tell_the_others() -> None:
    """PostgreSQL tells every controller what another one committed; the same topic once a transaction."""
    if op.get_bind().dialect.name == "sqlite":
        return
    op.execute(
        "CREATE FUNCTION bulkhead_tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_ARGV[0] = 'streams:' THEN PERFORM pg_notify('bulkhead', TG_ARGV[0] || NEW.host_id); "
        "ELSE PERFORM pg_notify('bulkhead', CASE WHEN TG_ARGV[0] LIKE '%:' THEN TG_ARGV[0] || NEW.id "
        "ELSE TG_ARGV[0] END); END IF; RETURN NULL; END $$"
    )
    for number, (table, when, topic) in enumerate(_TOLD):
        op.execute(
            f"CREATE TRIGGER {table}_tell_{number} AFTER {when} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION bulkhead_tell('{topic}')"
        )
