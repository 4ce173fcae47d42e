"""Apache Kafka itself, without Docker: as jars, on Java, as brokers that can be killed.

``python -m tests.apache_kafka`` runs it until it is interrupted; with a command behind it, as long
as that runs, and names it to it in ``KAFKA_BOOTSTRAP``.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from worker.children import die_with_parent

POM = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "pom.xml"
VERSION = ElementTree.parse(POM).findtext(
    "m:dependencies/m:dependency/m:version",
    namespaces={"m": "http://maven.apache.org/POM/4.0.0"},
)
#: Where the jars are kept, taken from Maven once.
CACHE = Path(os.environ.get("KAFKA_CACHE", "~/.cache/imagewarden")).expanduser()
JARS = CACHE / f"kafka-{VERSION}"

_HOST = "127.0.0.1"
# Below what systems give to outgoing connections: one of those would take the port of a broker
# that is down, and it could not come back.
_PORTS = range(20_000, 32_000)
_LEAST_JAVA = 17
_START_SECONDS = 90.0  # it takes 3 s; this is for a machine under load
_DOWNLOAD_SECONDS = 600.0
_TAIL_BYTES = 3000
_JAVA = (
    "java",
    *("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-Dorg.apache.logging.log4j.level=INFO", "-cp", f"{JARS}/*"),
)


@cache
def unavailable() -> str | None:
    """Why Kafka cannot run here; None where it can."""
    if shutil.which("java") is None:
        return f"Apache Kafka needs Java {_LEAST_JAVA}, and there is no java on the PATH"
    told = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < _LEAST_JAVA:
        return f"Apache Kafka needs Java {_LEAST_JAVA}, and this is {told.splitlines()[:1]}"
    if not JARS.is_dir() and shutil.which("mvn") is None:
        return f"the jars of Apache Kafka are not in {JARS}, and there is no mvn on the PATH"
    return None


class KafkaCluster:
    """Brokers, each of them a controller too, by their numbers from 0. From any thread."""

    def __init__(self, folder: Path, brokers: int, properties: Mapping[str, str]) -> None:
        self._folder = folder
        self._id = base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15))[:22].decode()
        ports = _free_ports(2 * brokers)
        self._ports, controllers = ports[:brokers], ports[brokers:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # They end with the thread that started them, so that is one of ours
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-brokers")
        for number in range(brokers):
            told = _properties(number, self._ports, controllers, self.data(number)) | properties
            lines = [f"{key}={value}\n" for key, value in told.items()]
            self._file(number, "properties").write_text("".join(lines))

    @property
    def bootstrap(self) -> str:
        """``host:port`` of each broker, with commas between."""
        return ",".join(f"{_HOST}:{port}" for port in self._ports)

    def data(self, number: int) -> Path:
        """Where it keeps its logs, in a folder for each partition."""
        return self._folder / f"broker-{number}"

    def kill(self, number: int) -> None:
        """SIGKILL; returns once it is gone."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def start(self, number: int) -> None:
        """On the ports and data it had; returns once it answers.

        Raises ``RuntimeError`` with the end of its log where it ends, or does not answer in time.
        """
        self._launch(number)
        self._wait(number, time.monotonic() + _START_SECONDS)

    def _open(self) -> None:
        """All at once, for the first of them waits for the second."""
        numbers = range(len(self._ports))
        for process in [self._thread.submit(self._format, number) for number in numbers]:
            process.result()
        for number in numbers:
            self._launch(number)
        deadline = time.monotonic() + _START_SECONDS
        for number in numbers:
            self._wait(number, deadline)

    def _close(self) -> None:
        for number in list(self._processes):
            self.kill(number)
        self._thread.shutdown()

    def _format(self, number: int) -> None:
        process = self._java(
            number,
            *("kafka.tools.StorageTool", "format", "--cluster-id", self._id),
            *("--config", str(self._file(number, "properties"))),
        )
        if process.wait(_START_SECONDS) != 0:
            raise RuntimeError(f"formatting the storage failed:\n{self._tail(number)}")

    def _launch(self, number: int) -> None:
        properties = str(self._file(number, "properties"))
        running = self._thread.submit(self._java, number, "kafka.Kafka", properties)
        self._processes[number] = running.result()

    def _java(self, number: int, *arguments: str) -> subprocess.Popen[bytes]:
        with self._file(number, "log").open("ab") as log:
            return subprocess.Popen(
                [*_JAVA, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is for us: we stop it when we are done with it
                preexec_fn=die_with_parent(),
            )

    def _wait(self, number: int, deadline: float) -> None:
        while not self._answers(self._ports[number]):
            if (code := self._processes[number].poll()) is not None:
                raise RuntimeError(f"broker {number} ended with {code}:\n{self._tail(number)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"broker {number} does not answer:\n{self._tail(number)}")
            time.sleep(0.05)

    def _answers(self, port: int) -> bool:
        """It, and nobody else; it listens once it has caught up and the controller let it in."""
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) != 0:
                return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=f"{_HOST}:{port}", bootstrap_timeout_ms=1000)
        except KafkaError:
            return False
        try:
            told = admin.describe_cluster()
        except KafkaError:
            return False
        finally:
            admin.close()
        members = [broker["port"] for broker in told["brokers"]]
        return bool(told["cluster_id"] == self._id and port in members)

    def _file(self, number: int, kind: str) -> Path:
        return self._folder / f"broker-{number}.{kind}"

    def _tail(self, number: int) -> str:
        return self._file(number, "log").read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


@contextmanager
def apache_kafka(
    brokers: int = 1, *, properties: Mapping[str, str] = MappingProxyType({})
) -> Iterator[KafkaCluster]:
    """A cluster that answers, on loopback; killed at the end, and its data removed.

    ``properties`` are more of Kafka's own, or others than ours. Topics are as the brokers are:
    with three, they have three replicas of which two must have what is acknowledged.

    Raises ``RuntimeError`` when it cannot be had, or does not start.
    """
    if why := unavailable():
        raise RuntimeError(why)
    _take_jars()
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="apache-kafka-")))
        cluster = KafkaCluster(folder, brokers, properties)
        parts.callback(cluster._close)
        cluster._open()
        yield cluster


def _properties(
    number: int, ports: Sequence[int], controllers: Sequence[int], logs: Path
) -> dict[str, str]:
    """Kafka's defaults, but for few partitions and a quick mind, as suits tests."""
    replicas, in_sync = str(len(ports)), str(len(ports) // 2 + 1)
    voters = [f"{node}@{_HOST}:{port}" for node, port in enumerate(controllers)]
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "listeners": (
            f"PLAINTEXT://{_HOST}:{ports[number]},CONTROLLER://{_HOST}:{controllers[number]}"
        ),
        "log.dirs": str(logs),
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "8",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        # A broker that was killed is known to be gone, and its partitions led by others, soon
        "broker.heartbeat.interval.ms": "1000",
        "broker.session.timeout.ms": "6000",
        "replica.lag.time.max.ms": "5000",
        # So are members of groups
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # Compaction at once, in little memory
        "log.cleaner.backoff.ms": "100",
        "log.cleaner.dedupe.buffer.size": str(8 * 2**20),
        "num.network.threads": "2",
        "num.io.threads": "4",
    }


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _take_jars() -> None:
    """From Maven into ``JARS``: whole or not at all, by one process while others wait for it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{JARS.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if JARS.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            taken = Path(folder) / JARS.name
            done = subprocess.run(
                [
                    *("mvn", "--batch-mode", "--quiet", "--file", str(POM)),
                    *("dependency:copy-dependencies", f"-DoutputDirectory={taken}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_DOWNLOAD_SECONDS,
            )
            if done.returncode != 0:
                raise RuntimeError(f"mvn did not give the jars of Apache Kafka:\n{done.stdout}")
            taken.rename(JARS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.apache_kafka", description=__doc__)
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parser.add_argument("--check", action="store_true", help="print why it cannot run here, if so")
    given = parser.parse_args()
    if given.check:
        print(unavailable() or "")
        return 0
    if why := unavailable():
        print(why, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with suppress(KeyboardInterrupt), apache_kafka(given.brokers) as cluster:
        if given.command:
            environment = os.environ | {"KAFKA_BOOTSTRAP": cluster.bootstrap}
            return subprocess.run(given.command, env=environment).returncode
        print(cluster.bootstrap, flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
