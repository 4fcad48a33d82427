"""Pools with the unmodified SDK: resize, stop, autoscale, patch, images (spec/rest.md §2.1, §11)."""

import itertools
from collections.abc import Iterator
from datetime import timedelta

import pytest
from azure.batch import BatchClient, models
from azure.core.exceptions import ResourceExistsError

from tests.integration.batch_endpoint import Sdk, refusal, service_thread

STEADY = models.AllocationState.STEADY
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    """Return a client of a service with one node, which is not in the pools of these tests."""
    state, node = (tmp_path_factory.mktemp(name) for name in ("state", "node"))
    with service_thread(state, node) as endpoint, BatchClient(endpoint.url, endpoint.credential()) as found:
        yield found


@pytest.fixture
def pool_id(client: Sdk) -> str:
    """Return the id of a pool without nodes."""
    name = f"pool-{next(_numbers)}"
    client.create_pool(models.BatchPoolCreateOptions(id=name, vm_size="standard_d2_v2"))
    return name


def test_a_pool_scales_as_the_sdks_own_test_wants_it(client: Sdk, pool_id: str) -> None:
    """Enable, evaluate, disable, resize, stop: the steps and texts of azure-batch's `test_scale_pools`."""
    client.enable_pool_auto_scale(
        pool_id,
        models.BatchPoolEnableAutoScaleOptions(
            auto_scale_formula="$TargetDedicatedNodes=2", auto_scale_evaluation_interval=timedelta(minutes=6)
        ),
    )
    pool = client.get_pool(pool_id)
    assert (pool.enable_auto_scale, pool.auto_scale_formula) == (True, "$TargetDedicatedNodes=2")
    assert (pool.auto_scale_evaluation_interval, pool.target_dedicated_nodes) == (timedelta(minutes=6), None)
    run = client.evaluate_pool_auto_scale(
        pool_id, models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes=3")
    )
    assert run.results == "$TargetDedicatedNodes=3;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue"
    client.disable_pool_auto_scale(pool_id)
    pool = client.get_pool(pool_id)
    assert (pool.enable_auto_scale, pool.allocation_state, pool.target_dedicated_nodes) == (False, STEADY, 0)
    size = models.BatchPoolResizeOptions(target_dedicated_nodes=0, target_low_priority_nodes=2)
    client.begin_resize_pool(pool_id, size, polling_interval=0)
    pool = client.get_pool(pool_id)
    assert (pool.allocation_state, pool.target_low_priority_nodes) == (models.AllocationState.RESIZING, 2)
    client.begin_stop_pool_resize(pool_id, polling_interval=0).wait(30)
    pool = client.get_pool(pool_id)
    assert pool.allocation_state == STEADY
    assert [error.code for error in pool.resize_errors] == ["ResizeStopped"]


def formula_error(client: Sdk, pool_id: str, formula: str) -> Sdk:
    """Return the error that enabling a formula is refused with."""
    options = models.BatchPoolEnableAutoScaleOptions(auto_scale_formula=formula)
    return refusal(lambda: client.enable_pool_auto_scale(pool_id, options))


def test_formulas_that_are_wrong_are_refused_with_the_place(client: Sdk, pool_id: str) -> None:
    """400 with line and column; one that has no value now is no error of the request."""
    error = formula_error(client, pool_id, "a = 1;\n$TargetDedicatedNodes = a +* 2;")
    assert (error.status_code, error.error.code) == (400, "AutoScalingFormulaSyntaxError")
    values = {value.key: value.value for value in error.model.error_values}
    assert (values["Line"], values["Column"]) == ("2", "28")
    error = formula_error(client, pool_id, "x=1;" * 3000)
    assert (error.status_code, error.error.code) == (400, "AutoScalingFormulaTooLong")
    formula = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = nobody")
    error = refusal(lambda: client.evaluate_pool_auto_scale(pool_id, formula))
    assert (error.status_code, error.error.code) == (409, "OperationInvalidForCurrentState")
    client.enable_pool_auto_scale(
        pool_id, models.BatchPoolEnableAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes = 0")
    )
    run = client.evaluate_pool_auto_scale(pool_id, formula)
    assert run.results is None
    assert (run.error.code, "line 1, column 25" in run.error.message) == ("AutoScalingFormulaEvaluationError", True)


def test_a_resize_of_a_pool_that_resizes_is_the_documented_conflict(client: Sdk, pool_id: str) -> None:
    """The exception of azure-core, and the code of Batch; wrong bodies are 400."""
    size = models.BatchPoolResizeOptions(target_dedicated_nodes=1)
    client.begin_resize_pool(pool_id, size, polling_interval=0)
    with pytest.raises(ResourceExistsError, match="PoolBeingResized"):
        client.begin_resize_pool(pool_id, size, polling_interval=0)
    short = models.BatchPoolResizeOptions(target_dedicated_nodes=1, resize_timeout=timedelta(minutes=1))

    def refused_with(body: models.BatchPoolResizeOptions) -> tuple[int, str]:
        error = refusal(lambda: client.begin_resize_pool(pool_id, body, polling_interval=0))
        return error.status_code, error.error.code

    assert refused_with(models.BatchPoolResizeOptions()) == (400, "InvalidPropertyValue")
    assert refused_with(short) == (400, "InvalidPropertyValue")


def test_patch_changes_all_documented_properties_of_an_empty_pool(client: Sdk, pool_id: str) -> None:
    """Those of a pool with nodes are fixed, but for start task, packages and metadata."""
    network = models.NetworkConfiguration(dynamic_vnet_assignment_scope="none")
    accounts = [models.UserAccount(name="worker", password="a secret")]
    patch = models.BatchPoolUpdateOptions(
        vm_size="STANDARD_d4_v3",
        display_name="other",
        task_slots_per_node=3,
        network_configuration=network,
        user_accounts=accounts,
    )
    client.update_pool(pool_id, patch)
    pool = client.get_pool(pool_id)
    assert (pool.vm_size, pool.display_name, pool.task_slots_per_node) == ("standard_d4_v3", "other", 3)
    assert pool.network_configuration.dynamic_vnet_assignment_scope == "none"
    assert [(account.name, account.password) for account in pool.user_accounts] == [("worker", None)]
    assert [found.id for found in client.list_pools(filter="vmSize eq 'standard_d4_v3'")] == [pool_id]
    error = refusal(lambda: client.update_pool("local", models.BatchPoolUpdateOptions(task_slots_per_node=2)))
    assert (error.status_code, error.error.code) == (409, "OperationInvalidForCurrentState")
    client.update_pool("local", models.BatchPoolUpdateOptions(metadata=[models.BatchMetadataItem(name="a", value="b")]))
    assert [(item.name, item.value) for item in client.get_pool("local").metadata] == [("a", "b")]


def test_mounts_are_refused_by_name(client: Sdk, pool_id: str) -> None:
    """In a new pool, and in a patch."""
    mounts = [
        models.MountConfiguration(
            nfs_mount_configuration=models.NfsMountConfiguration(source="a:/b", relative_mount_path="c")
        )
    ]
    pool = models.BatchPoolCreateOptions(id=f"{pool_id}-m", vm_size="v", mount_configuration=mounts)
    for call in (
        lambda: client.create_pool(pool),
        lambda: client.update_pool(pool_id, models.BatchPoolUpdateOptions(mount_configuration=mounts)),
    ):
        error = refusal(call)
        assert (error.status_code, error.error.code) == (400, "UnsupportedProperty")
        assert "mountConfiguration" in {value.value for value in error.model.error_values}


def test_a_formula_and_a_target_exclude_each_other(client: Sdk, pool_id: str) -> None:
    """In a new pool; with a formula alone it begins steady."""
    formula = "$TargetDedicatedNodes = 0"
    both = models.BatchPoolCreateOptions(
        id=f"{pool_id}-a", vm_size="v", enable_auto_scale=True, auto_scale_formula=formula, target_dedicated_nodes=1
    )
    error = refusal(lambda: client.create_pool(both))
    assert (error.status_code, error.error.code) == (400, "InvalidPropertyValue")
    one = models.BatchPoolCreateOptions(
        id=f"{pool_id}-a", vm_size="v", enable_auto_scale=True, auto_scale_formula=formula
    )
    client.create_pool(one)
    pool = client.get_pool(one.id)
    assert (pool.allocation_state, pool.auto_scale_evaluation_interval) == (STEADY, timedelta(minutes=15))


def test_images_are_listed_filtered_and_paged(client: Sdk) -> None:
    """What a client asks for before it makes a pool."""
    images = list(client.list_supported_images())
    assert {(image.os_type, image.verification_type) for image in images} == {("linux", "verified")}
    wanted = "osType eq 'linux' and nodeAgentSKUId eq 'batch.node.ubuntu 24.04'"
    found = list(client.list_supported_images(filter=wanted))
    assert {image.image_reference.offer for image in found} == {"ubuntu-24_04-lts", "ubuntu-hpc"}
    pages = [list(page) for page in client.list_supported_images(max_results=2).by_page()]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [image.image_reference.sku for page in pages for image in page] == [
        image.image_reference.sku for image in images
    ]
    assert list(client.list_supported_images(filter="osType eq 'windows'")) == []


def test_what_pools_cost_is_nothing_and_where_a_node_is_can_be_asked(client: Sdk) -> None:
    """Usage metrics are empty; the login address is the node's own."""
    assert list(client.list_pool_usage_metrics()) == []
    (node,) = client.list_nodes("local")
    settings = client.get_node_remote_login_settings("local", node.id)
    assert (settings.remote_login_ip_address, settings.remote_login_port) == (node.ip_address, 22)
    error = refusal(lambda: client.get_node_remote_login_settings("local", "nobody"))
    assert (error.status_code, error.error.code) == (404, "NodeNotFound")
