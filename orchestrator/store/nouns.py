"""Every noun of the database as one object: `TENANTS.get(tx, scope, "acme")`."""

from __future__ import annotations

from orchestrator.model.catalog import Image, InstanceType
from orchestrator.model.deployment import Deployment
from orchestrator.model.fleet import FleetHost, GpuRecord, StaleInstance
from orchestrator.model.instance import InstanceRecord
from orchestrator.model.network import Network, NetworkPort
from orchestrator.model.operation import Operation
from orchestrator.model.principal import Principal
from orchestrator.model.request import CapacityRequest
from orchestrator.model.tenant import Tenant
from orchestrator.model.volume import VolumeRecord
from orchestrator.store.rows import Noun
from orchestrator.store.tables.catalog import ImageRow, InstanceTypeRow
from orchestrator.store.tables.fleet import GpuRow, HostRow, StaleInstanceRow
from orchestrator.store.tables.instances import InstanceRow, RequestRow
from orchestrator.store.tables.networks import NetworkRow, PortRow
from orchestrator.store.tables.operations import OperationRow
from orchestrator.store.tables.people import PrincipalRow
from orchestrator.store.tables.tenants import DeploymentRow, TenantRow
from orchestrator.store.tables.volumes import VolumeRow

DEPLOYMENTS = Noun(DeploymentRow, Deployment, tenant_column=None, name_column=None)
TENANTS = Noun(TenantRow, Tenant, tenant_column="id")
PRINCIPALS = Noun(PrincipalRow, Principal)
TYPES = Noun(InstanceTypeRow, InstanceType, tenant_column=None)
#: Images of nobody are for everybody: `controller.catalog` widens the scope.
IMAGES = Noun(ImageRow, Image, tenant_column=None)
NETWORKS = Noun(NetworkRow, Network)
PORTS = Noun(PortRow, NetworkPort, name_column=None)
VOLUMES = Noun(VolumeRow, VolumeRecord)
INSTANCES = Noun(InstanceRow, InstanceRecord)
REQUESTS = Noun(RequestRow, CapacityRequest, name_column=None, born_column="submitted_ms")
OPERATIONS = Noun(OperationRow, Operation, name_column=None)
HOSTS = Noun(HostRow, FleetHost, tenant_column=None, hidden_state="removed")
STALE = Noun(StaleInstanceRow, StaleInstance, name_column=None)
GPUS = Noun(GpuRow, GpuRecord, tenant_column=None, name_column=None)
