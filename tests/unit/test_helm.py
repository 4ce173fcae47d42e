"""The chart for Kubernetes, rendered by Helm and held to Kubernetes' own schemas. No cluster runs
it here."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from pydantic import SecretStr
from ruamel.yaml import YAML
from typer.main import get_command

from tests.conftest import REPOSITORY
from tests.deploy_tools import run
from tests.policy_factory import category, policy_bytes
from worker import egress
from worker.cli import cli
from worker.endpoints import Health, open_endpoints
from worker.policy_yaml import load_policy
from worker.settings import CONFIG_VARIABLE, PREFIX, Settings
from worker.settings_load import load_settings, variables

CHART = REPOSITORY / "deploy" / "helm" / "imagewarden"
YAML_READER = YAML(typ="safe")
OLDEST = re.search(r'kubeVersion: ">=(\d+\.\d+)', (CHART / "Chart.yaml").read_text())[1]  # type: ignore[index]

#: What Kubernetes' schemas do not know, and where there are models of it.
CUSTOM = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "TriggerAuthentication": "cloudcoil.models.keda.v1alpha1",
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}

LOGIN = {
    "settings": {
        "KAFKA_SECURITY__PROTOCOL": "SASL_SSL",
        "KAFKA_SECURITY__SASL_MECHANISM": "SCRAM-SHA-512",
    },
    "secrets": {
        "KAFKA_SECURITY__SASL_USERNAME": {"name": "kafka", "key": "user"},
        "KAFKA_SECURITY__SASL_PASSWORD": {"name": "kafka", "key": "password"},
        "REDIS__URL": {"name": "imagewarden", "key": "redis-url"},
        "CACHE__URL_KEY": {"name": "imagewarden", "key": "url-key"},
    },
    "kafkaTls": {"secret": "kafka-tls", "clientCertificate": True},
}
GROUPS = {
    "groups": [
        {
            "name": "l4",
            "gpus": 1,
            "replicas": 4,
            "image": {"tag": "1.2.3-gpu"},
            "nodeSelector": {"accelerator": "l4"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "rollout": {"maxSurge": 0, "maxUnavailable": "25%"},
            "settings": {"WORK__IMAGES": 200, "WORK__DRAIN_SECONDS": 40},
            "runtimeClassName": "nvidia",
        },
        {"name": "cpu", "affinity": {"nodeAffinity": {}}, "podAnnotations": {"a": "b"}},
    ]
}
POLICIES = {
    "policies": {
        "decide": ["shop.yaml", "eu/shop.yaml"],
        "files": {
            "shop.yaml": policy_bytes(category(), id="shop").decode(),
            "eu/shop.yaml": policy_bytes(category(), id="eu").decode(),
        },
        "binaryFiles": {"heads/red.safetensors": base64.b64encode(b"\0\1").decode()},
    }
}
RULES = {
    "groups": [
        {
            "name": "imagewarden",
            "rules": [
                {
                    "alert": "PolicyStale",
                    "expr": "imagewarden_policy_stale > 0",
                    "for": "5m",
                    "labels": {"severity": "page"},
                    "annotations": {"summary": "{{ $labels.policy }} is refused"},
                }
            ],
        }
    ]
}
MONITORED = {
    "monitoring": {
        "podMonitor": True,
        "labels": {"release": "prometheus"},
        "rules": {"imagewarden": json.dumps(RULES)},
    }
}
#: Sets of values as they are combined in life, by name.
VALUE_SETS: Mapping[str, Mapping[str, Any]] = {
    "as it comes": {},
    "groups of GPUs": GROUPS,
    "secrets and a login": LOGIN,
    "scaled": {**LOGIN, **GROUPS, "autoscaling": {"enabled": True}},
    "scaled without a login": {"autoscaling": {"enabled": True}},
    "scaled by the rate": {
        "autoscaling": {"enabled": True, "prometheus": "http://prometheus.monitoring:9090"}
    },
    "own policies": POLICIES,
    "a ConfigMap of theirs": {"policies": {"configMap": "ours"}},
    "weights in a claim": {"weights": {"from": "claim", "claim": "models"}},
    "weights in the image": {"weights": {"from": "image"}},
    "monitored": MONITORED,
    "behind a proxy": {
        "secrets": {"FETCH__EGRESS_PROXY": {"name": "proxy", "key": "url"}},
        "networkPolicy": {"proxy": {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}},
    },
    "by digest": {
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
        "networkPolicy": {"clusterCidrs": ["34.118.224.0/20", "2600:1900::/28"]},
    },
    "nothing optional": {"topics": {"create": False}, "networkPolicy": {"enabled": False}},
}

Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Renders the chart with values; each set of them once."""
    folder = tmp_path_factory.mktemp("values")
    rendered: dict[str, list[dict[str, Any]]] = {}

    def once(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        written = json.dumps(values)
        if written not in rendered:
            file = folder / "values.json"
            file.write_text(written)
            text = run(
                "helm", "template", "shop", CHART, "--kube-version", OLDEST, "--values", file
            )
            rendered[written] = [each for each in YAML_READER.load_all(text) if each]
        return rendered[written]

    return once


@pytest.fixture(params=VALUE_SETS.values(), ids=VALUE_SETS.keys())
def objects(request: pytest.FixtureRequest, render: Render) -> list[dict[str, Any]]:
    return render(request.param)


def of_kind(objects: Iterable[Mapping[str, Any]], kind: str) -> list[Any]:
    return [each for each in objects if each["kind"] == kind]


def pods(objects: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """The pod templates of Deployments and Jobs."""
    for each in objects:
        if "template" in each.get("spec", {}):
            yield each["spec"]["template"]


def workers(objects: Iterable[Mapping[str, Any]]) -> list[Any]:
    return list(pods(of_kind(objects, "Deployment")))


def container(pod: Mapping[str, Any]) -> Any:
    [only] = pod["spec"]["containers"]
    return only


def environment(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Each variable's value, or where it is from."""
    return {
        each["name"]: each.get("value", each.get("valueFrom")) for each in container(pod)["env"]
    }


def selects(selector: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    return selector["matchLabels"].items() <= pod["metadata"]["labels"].items()


# ---------------------------------------------------------------- valid


def test_helm_finds_nothing_to_say() -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", CHART)


@pytest.mark.parametrize("version", [OLDEST, "latest"])
def test_what_is_rendered_is_what_kubernetes_takes(
    objects: list[dict[str, Any]], version: str
) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="run make deploy-tools")
    if version == "latest":
        version = schemas.latest_version()
    for each in objects:
        if each["kind"] not in CUSTOM:
            schemas.validate(each, version, strict=True)


@pytest.mark.parametrize("kind", CUSTOM)
def test_what_operators_take_is_what_their_types_say(render: Render, kind: str) -> None:
    types = pytest.importorskip(CUSTOM[kind], reason="run make deploy-tools")
    [first, *_] = of_kind(render({**LOGIN, **MONITORED, "autoscaling": {"enabled": True}}), kind)
    parsed = getattr(types, kind).model_validate(first)
    # they pass over names they do not know, which are missing then
    assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == first


def test_the_chart_is_of_the_version_of_the_project() -> None:
    chart = YAML_READER.load(CHART / "Chart.yaml")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert str(chart["appVersion"]) == project["version"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"setings": {}}, "'setings' not allowed"),
        ({"settings": {"REDIS__URL": "redis://:secret@redis"}}, "'REDIS__URL'"),
        ({"settings": {"WORKER": "same-for-all"}}, "'WORKER'"),
        ({"settings": {"work__images": 4}}, "'work__images'"),
        ({"settings": {"WORK__DRAIN_SECONDS": 0}}, "/settings/WORK__DRAIN_SECONDS"),
        ({"secrets": {"REDIS__URL": "redis://redis"}}, "/secrets/REDIS__URL"),
        ({"groups": []}, "/groups"),
        ({"groups": [{"gpus": 1}]}, "missing property 'name'"),
        ({"groups": [{"name": "A100"}]}, "/groups/0/name"),
        ({"worker": {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}}, "/worker/rollout"),
        ({"worker": {"gpus": "one"}}, "/worker/gpus"),
        ({"weights": {"from": "claim"}}, "/weights/claim"),
        ({"policies": {"files": {"../up.yaml": "a"}}}, "../up.yaml"),
        ({"policies": {"files": {"shop.yaml": "a"}}}, "default.yaml is none of policies.files"),
        ({"networkPolicy": {"kafka": {"to": []}}}, "/networkPolicy/kafka/to"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "/networkPolicy/metricsFrom"),
        (
            {"secrets": {"FETCH__EGRESS_PROXY": {"name": "proxy", "key": "url"}}},
            "networkPolicy.proxy.to",
        ),
        (
            {
                **LOGIN,
                "secrets": {"KAFKA_SECURITY__SASL_PASSWORD": {"name": "kafka", "key": "p"}},
                "autoscaling": {"enabled": True},
            },
            "move KAFKA_SECURITY__SASL_USERNAME",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_refused(render: Render, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(problem)):
        render(values)


# ---------------------------------------------------------------- settings


def test_all_variables_are_settings_and_secrets_come_from_secrets(
    objects: list[dict[str, Any]],
) -> None:
    for pod in pods(objects):
        for name, value in environment(pod).items():
            if name.startswith(PREFIX):
                assert name in variables()
                assert "secretKeyRef" in value if name in secret_variables() else True


def secret_variables() -> set[str]:
    return {
        f"{PREFIX}{section}__{name}".upper()
        for section, field in Settings.model_fields.items()
        for name, setting in getattr(field.annotation, "model_fields", {}).items()
        if SecretStr.__name__ in str(setting.annotation)
    }


def test_every_secret_is_refused_among_the_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = schema["definitions"]["settings"]["propertyNames"]["not"]["enum"]
    assert {f"{PREFIX}{name}" for name in refused} == secret_variables()


def test_what_the_chart_sets_itself_is_refused_among_the_settings(render: Render) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = {f"{PREFIX}{each}" for each in schema["definitions"]["settingName"]["not"]["enum"]}
    assert refused <= {*variables(), CONFIG_VARIABLE}
    [pod] = workers(render({"kafkaTls": LOGIN["kafkaTls"]}))
    own = {name for name in environment(pod) if name.startswith(PREFIX)}
    assert own - refused == {f"{PREFIX}KAFKA__BOOTSTRAP"}


def test_a_worker_understands_what_it_is_given(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "KAFKA__BOOTSTRAP": "a:9092,b:9092",
        "FETCH__MAX_BYTES": 20971520,
        "HOST__SHARE": 0.25,
        "DECODE__PERCEPTUAL_HASH": False,
        "LOG__LEVEL": "debug",
    }
    [pod] = workers(render({"settings": given}))
    for name, value in environment(pod).items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)

    settings = load_settings()
    assert settings.kafka.bootstrap == ("a:9092", "b:9092")
    assert settings.fetch.max_bytes == 20971520
    assert settings.host.share == 0.25
    assert settings.decode.perceptual_hash is False
    assert settings.log.level == "debug"


def test_a_group_has_its_own_settings_and_the_common_ones(render: Render) -> None:
    settings = {"KAFKA__BOOTSTRAP": "kafka:9092", "WORK__IMAGES": 10}
    l4, cpu = workers(render({**GROUPS, "settings": settings}))
    assert environment(l4)["IMAGEWARDEN_WORK__IMAGES"] == "200"
    assert environment(cpu)["IMAGEWARDEN_WORK__IMAGES"] == "10"
    for pod in (l4, cpu):
        assert environment(pod)["IMAGEWARDEN_KAFKA__BOOTSTRAP"] == "kafka:9092"


def test_services_add_no_variables_that_look_like_settings(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        assert pod["spec"]["enableServiceLinks"] is False


# ---------------------------------------------------------------- pods


def test_no_container_is_root_or_may_become_it(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_only_tmp_and_the_cache_are_writable(objects: list[dict[str, Any]]) -> None:
    for pod in workers(objects):
        mounts = container(pod)["volumeMounts"]
        writable = {each["mountPath"] for each in mounts if not each.get("readOnly")}
        assert writable - {"/home/imagewarden/.cache/imagewarden"} <= {
            "/tmp",
            "/home/imagewarden/.cache",
        }
        volumes = {each["name"] for each in pod["spec"]["volumes"]}
        assert {each["name"] for each in mounts} == volumes


def test_weights_in_the_image_are_neither_hidden_nor_looked_for(render: Render) -> None:
    [pod] = workers(render(VALUE_SETS["weights in the image"]))
    paths = {each["mountPath"] for each in container(pod)["volumeMounts"]}
    assert "/home/imagewarden/.cache" not in paths
    assert environment(pod)["HF_HUB_OFFLINE"] == "1"


def test_probes_ask_for_what_workers_serve(objects: list[dict[str, Any]]) -> None:
    well = Health(True, "well")
    endpoints = open_endpoints("127.0.0.1", 0, live=lambda: well, ready=lambda: well)
    try:
        for pod in workers(objects):
            worker = container(pod)
            [port] = worker["ports"]
            default = Settings.model_fields["http"].get_default(call_default_factory=True)
            assert port["containerPort"] == default.port
            assert environment(pod)["IMAGEWARDEN_HTTP__HOST"] == "0.0.0.0"
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = worker[probe]["httpGet"]
                assert asked["port"] == port["name"]
                with urlopen(f"http://{endpoints.address}{asked['path']}") as answer:
                    assert answer.status == 200
    finally:
        endpoints.close()


def test_a_broker_that_is_away_restarts_nobody(render: Render) -> None:
    [pod] = workers(render({}))
    for probe in ("startupProbe", "livenessProbe"):
        assert container(pod)[probe]["httpGet"]["path"] == "/livez"
    assert container(pod)["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_grace_is_longer_than_the_drain(objects: list[dict[str, Any]]) -> None:
    default = Settings.model_fields["work"].get_default(call_default_factory=True).drain_seconds
    for pod in workers(objects):
        drain = float(environment(pod).get("IMAGEWARDEN_WORK__DRAIN_SECONDS", default))
        assert pod["spec"]["terminationGracePeriodSeconds"] >= drain + 20


def test_a_group_of_gpus_asks_for_them_and_goes_where_they_are(render: Render) -> None:
    l4, cpu = workers(render(GROUPS))
    assert container(l4)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert l4["spec"]["nodeSelector"] == {"accelerator": "l4"}
    assert container(l4)["image"] == "imagewarden:1.2.3-gpu"
    assert "nvidia.com/gpu" not in container(cpu)["resources"]["limits"]


def test_budgets_and_spreads_are_of_one_group_each(objects: list[dict[str, Any]]) -> None:
    groups = workers(objects)
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert len(budgets) == len(groups)
    selectors = [each["spec"]["selector"] for each in budgets]
    for pod in groups:
        selectors += [each["labelSelector"] for each in pod["spec"]["topologySpreadConstraints"]]
    for selector in selectors:
        assert sum(selects(selector, pod) for pod in groups) == 1


def test_deployments_select_their_own_pods_and_no_others(objects: list[dict[str, Any]]) -> None:
    for deployment in of_kind(objects, "Deployment"):
        selected = [pod for pod in pods(objects) if selects(deployment["spec"]["selector"], pod)]
        assert selected == [deployment["spec"]["template"]]


# ---------------------------------------------------------------- policies


def test_policies_are_mounted_as_they_were_given(render: Render, tmp_path: Path) -> None:
    objects = render(POLICIES)
    [pod] = workers(objects)
    [config] = of_kind(objects, "ConfigMap")
    content = {key: text.encode() for key, text in config["data"].items()}
    content |= {key: base64.b64decode(text) for key, text in config["binaryData"].items()}
    [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == "policies"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    [mount] = [each for each in container(pod)["volumeMounts"] if each["name"] == "policies"]
    for item in volume["configMap"]["items"]:
        path = tmp_path / item["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.pop(item["key"]))
    assert not content

    decide = environment(pod)["IMAGEWARDEN_POLICIES"].split(",")
    ids = [load_policy(tmp_path / Path(each).relative_to(mount["mountPath"])).id for each in decide]
    assert ids == ["shop", "eu"]
    assert (tmp_path / "heads/red.safetensors").read_bytes() == b"\0\1"


def test_keys_of_the_policies_are_such_as_kubernetes_takes(render: Render) -> None:
    [config] = of_kind(render(POLICIES), "ConfigMap")
    for key in (*config["data"], *config["binaryData"]):
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", key)
        assert not key.startswith("..")


def test_an_edited_policy_starts_no_pod_anew(render: Render) -> None:
    edited = json.loads(json.dumps(POLICIES))
    edited["policies"]["files"]["shop.yaml"] = policy_bytes(category(), version=2).decode()
    before, after = render(POLICIES), render(edited)
    changed = [old["kind"] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["ConfigMap"]


def test_policies_are_mounted_as_a_folder_so_that_edits_arrive(
    objects: list[dict[str, Any]],
) -> None:
    for pod in workers(objects):
        assert not any("subPath" in each for each in container(pod)["volumeMounts"])


def test_without_files_the_policies_of_the_image_decide(render: Render) -> None:
    [pod] = workers(render({}))
    assert (REPOSITORY / environment(pod)["IMAGEWARDEN_POLICIES"]).is_file()


# ---------------------------------------------------------------- network


def internet(objects: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The blocks of addresses that may be reached."""
    [policy] = of_kind(objects, "NetworkPolicy")
    return [
        peer["ipBlock"]
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]


def test_egress_leaves_out_exactly_what_workers_refuse(render: Render) -> None:
    v4, v6 = internet(render({}))
    assert ip_network(v4["cidr"]) == ip_network("0.0.0.0/0")
    assert set(map(ip_network, v4["except"])) == set(egress._FORBIDDEN_IPV4)
    assert ip_network(v6["cidr"]) == egress._GLOBAL_IPV6
    assert set(map(ip_network, v6["except"])) == set(egress._FORBIDDEN_IPV6)


def test_egress_leaves_out_a_cluster_on_public_addresses(render: Render) -> None:
    v4, v6 = internet(render(VALUE_SETS["by digest"]))
    assert "34.118.224.0/20" in v4["except"]
    assert "2600:1900::/28" in v6["except"]


def test_egress_is_on_the_ports_that_workers_fetch_from(render: Render) -> None:
    for ports in ("80,443", "443,8443"):
        values = {"settings": {"FETCH__PORTS": ports}} if ports != "80,443" else {}
        [policy] = of_kind(render(values), "NetworkPolicy")
        rule = policy["spec"]["egress"][-1]
        assert ",".join(str(each["port"]) for each in rule["ports"]) == ports
    default = Settings.model_fields["fetch"].get_default(call_default_factory=True).ports
    assert default == (80, 443)


def test_with_a_proxy_the_internet_is_out_of_reach(render: Render) -> None:
    assert internet(render(VALUE_SETS["behind a proxy"])) == [{"cidr": "10.1.2.3/32"}]


def test_no_rule_is_without_peers_which_would_mean_everybody(
    objects: list[dict[str, Any]],
) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in (*policy["spec"]["ingress"], *policy["spec"]["egress"]):
            peers = rule.get("to", rule.get("from"))
            assert peers
            assert all(peers)
            assert rule["ports"]
        assert all(
            selects({"matchLabels": policy["spec"]["podSelector"]["matchLabels"]}, pod)
            for pod in pods(objects)
        )


# ---------------------------------------------------------------- scaling, topics, monitoring


def test_scaling_looks_at_the_group_and_topic_of_live_requests(render: Render) -> None:
    kafka = Settings.model_fields["kafka"].get_default(call_default_factory=True)
    own = {"KAFKA__GROUP": "g", "KAFKA__REQUESTS_TOPIC": "t", "KAFKA__BOOTSTRAP": "b:1"}
    for settings, group, topic in (
        ({}, kafka.group, kafka.requests_topic),
        (own, "g", "t"),
    ):
        objects = render({"settings": settings, "autoscaling": {"enabled": True}})
        [scaled] = of_kind(objects, "ScaledObject")
        [trigger] = scaled["spec"]["triggers"]
        assert trigger["metadata"]["consumerGroup"] == group
        assert trigger["metadata"]["topic"] == topic
        assert all(isinstance(each, str) for each in trigger["metadata"].values())


def test_what_is_scaled_has_no_number_of_replicas_to_go_back_to(render: Render) -> None:
    objects = render(VALUE_SETS["scaled"])
    deployments = {each["metadata"]["name"]: each for each in of_kind(objects, "Deployment")}
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in of_kind(objects, "ScaledObject")]
    assert sorted(targets) == sorted(deployments)
    assert not any("replicas" in each["spec"] for each in deployments.values())


def test_a_fleet_is_scaled_by_its_rate_too_where_prometheus_is_named(render: Render) -> None:
    [scaled] = of_kind(render(VALUE_SETS["scaled by the rate"]), "ScaledObject")
    _, trigger = scaled["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert "rate(imagewarden_requests_total" in trigger["metadata"]["query"]
    assert trigger["metadata"]["threshold"] == "100"


def test_scaling_logs_in_to_kafka_as_workers_do(render: Render) -> None:
    objects = render(VALUE_SETS["scaled"])
    [login] = of_kind(objects, "TriggerAuthentication")
    parameters = {each["parameter"]: each["key"] for each in login["spec"]["secretTargetRef"]}
    assert parameters == {
        "username": "user",
        "password": "password",
        "ca": "ca.crt",
        "cert": "tls.crt",
        "key": "tls.key",
    }
    for scaled in of_kind(objects, "ScaledObject"):
        [trigger] = scaled["spec"]["triggers"]
        assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
        assert trigger["metadata"]["tls"] == "enable"
        assert trigger["metadata"]["sasl"] == "scram_sha512"


def test_topics_are_created_before_workers_by_a_command_that_there_is(render: Render) -> None:
    [job] = of_kind(render({}), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    command: Any = get_command(cli)
    for name in container(job["spec"]["template"])["args"]:
        command = command.commands[name]
    assert callable(command.callback)


def test_what_topics_are_to_be_like_can_be_said(render: Render) -> None:
    [job] = of_kind(render({"topics": {"args": ["--partitions", 48]}}), "Job")
    args = container(job["spec"]["template"])["args"]
    assert args == ["topics", "create", "--partitions", "48"]


def test_alerts_arrive_as_they_were_written(render: Render) -> None:
    [rule] = of_kind(render(MONITORED), "PrometheusRule")
    assert rule["spec"] == RULES
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_the_monitor_finds_workers_and_not_those_who_create_topics(render: Render) -> None:
    objects = render(MONITORED)
    [monitor] = of_kind(objects, "PodMonitor")
    selected = [pod for pod in pods(objects) if selects(monitor["spec"]["selector"], pod)]
    assert selected == workers(objects)
    job = selected[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert job == "imagewarden"  # as alerts and dashboards have it
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {each["name"] for each in container(selected[0])["ports"]}
