"""What the documents say of the code is what the code says.

``python -m tests.unit.test_docs`` writes the generated tables of README.md anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Info
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tests.fakes import FakeEncoder
from tests.policy_factory import head_bytes
from worker import telemetry
from worker.bench.results import Figure, Result, read_report
from worker.collectors import Probabilities, Reading
from worker.errors import ErrorCode
from worker.feedback import parse_feedback
from worker.policy_yaml import load_policy, parse_policy
from worker.schema import Verdict, parse_request
from worker.settings import CONFIG_VARIABLE, PREFIX, Settings
from worker.settings_load import variables

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = (README, ARCHITECTURE, CONTRIBUTING, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md")


# ---------------------------------------------------------------- what is generated


def settings_table() -> str:
    rows = [(f"`{name}`", _default(field), _prose(field)) for name, field in _settings()]
    return _table(("variable", "default", "meaning"), rows)


def _settings() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for inner, setting in section.model_fields.items():
                yield f"{PREFIX}{name}__{inner}".upper(), setting
        else:
            yield f"{PREFIX}{name}".upper(), field


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "host name and process id"
    match field.default:
        case None | () | SecretStr():
            return "unset"
        case tuple(values):
            return f"`{','.join(map(str, values))}`"
        case float(number) if number.is_integer():
            return f"`{int(number)}`"
        case int(number) if number >= 2**20 and number % 2**20 == 0:
            return f"`{number}` ({number // 2**20} MiB)"
        case value:
            return f"`{value}`"


def _prose(field: FieldInfo) -> str:
    assert field.description, "every setting has a docstring"
    return field.description.replace("\n", " ")


def metrics_table() -> str:
    rows = []
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase | Reading | Probabilities):
            [family] = metric.describe()
            ours = not isinstance(metric, MetricWrapperBase)
            names = metric.labelnames if ours else metric._labelnames
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = ", ".join(f"`{name}`" for name in names)
            kind = "gauge" if isinstance(metric, Info) else family.type
            name = f"`{family.name}{suffix}`"
            rows.append((name, kind, labels, family.documentation))
    return _table(("metric", "type", "labels", "meaning"), rows)


def policies_table() -> str:
    rows = []
    for path in sorted((ROOT / "policies").glob("*.yaml")):
        policy = load_policy(path)
        categories = ", ".join(f"`{category.id}`" for category in policy.categories)
        fitted = sum(category.calibration is not None for category in policy.categories)
        calibrated = f"{fitted} of {len(policy.categories)}"
        link = f"[{path.name}](policies/{path.name})"
        rows.append((link, _first_sentence(path), f"`{policy.model}`", categories, calibrated))
    return _table(("file", "what it is", "model", "categories", "calibrated"), rows)


def _first_sentence(path: Path) -> str:
    """Of the comment that a policy begins with."""
    comment = re.match(r"(?:#.*\n)+", path.read_text())
    assert comment is not None, f"{path} begins with a comment that says what it is"
    prose = " ".join(line.removeprefix("#").strip() for line in comment[0].splitlines())
    return re.split(r"(?<=\.) ", prose, maxsplit=1)[0]


def speed_table() -> str:
    """The service and others at the same work, as `make bench` found them; the fastest first."""
    results = read_report(ROOT / "worker" / "bench" / "measured.json").results
    turns = [result for result in results if "random weights" in result.conditions.get("model", "")]
    assert turns, "worker/bench/measured.json is of a run without the others"
    measured = [result for result in turns if not result.failed]
    measured.sort(key=lambda result: -result.figures["images/s"].median)
    shown = ("images/s", "core-ms/image", "MiB resident")
    rows = [
        (_contender(result), *(_found(result.figures[name]) for name in shown))
        for result in measured
    ]
    for result in turns:
        if result.failed:
            rows.append((_contender(result), f"not measured: {result.failed}", "", ""))
    return _table(("", *shown), rows)


def _contender(result: Result) -> str:
    told = dict(result.conditions)
    how, engine = told.pop("how"), told.pop("engine", None)
    versions = [f"{name} {told[name]}" for name in told if name not in ("model", "photos")]
    name = "**imagewarden**" if engine else result.scenario.removeprefix("peer: ")
    return f"{name} ({engine or versions[0]}): {how}" if engine or versions else f"{name}: {how}"


def _found(figure: Figure) -> str:
    low, high = figure.spread
    return f"{figure.median:,.0f} ({low:,.0f} to {high:,.0f})"


def error_codes() -> str:
    return ", ".join(f"`{code}`" for code in ErrorCode) + "."


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "error codes": error_codes,
    "policies": policies_table,
    "speed": speed_table,
}


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- generated: {name} -->\n).*?(?=<!-- /generated -->)", re.S)


def write() -> None:
    text = README.read_text()
    for name, generate in GENERATED.items():
        found = _block(name).search(text)
        assert found is not None, f"README.md has no block for {name}"
        text = f"{text[: found.start()]}{generate()}\n{text[found.end() :]}"
    README.write_text(text)


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("name", GENERATED)
def test_generated_part_of_the_readme_is_what_the_code_says(name: str) -> None:
    found = _block(name).search(README.read_text())
    assert found is not None
    assert found[0] == GENERATED[name]() + "\n", "run: python -m tests.unit.test_docs"


def test_settings_table_has_every_variable() -> None:
    assert [name for name, _ in _settings()] == list(variables())


def test_variables_that_the_documents_name_exist() -> None:
    known = {*variables(), CONFIG_VARIABLE}
    named = {name for file in DOCUMENTS for name in re.findall(rf"{PREFIX}\w+", file.read_text())}
    assert named - known == set()


def test_policies_in_the_readme_are_valid(tmp_path: Path) -> None:
    for folder in ("heads", "lists"):
        (tmp_path / folder).mkdir()
    (tmp_path / "heads" / "smoking.safetensors").write_bytes(
        head_bytes(FakeEncoder().info, [1.0, 0.0])
    )
    (tmp_path / "lists" / "known-bad.txt").write_text("0123456789abcdef" * 4)
    policies = _fenced(README, "yaml")
    assert policies
    for policy in policies:
        parse_policy(policy.encode(), str(tmp_path / "README.md"))


def test_request_in_the_readme_is_one() -> None:
    requests = [text for text in _fenced(README, "json") if '"request_id"' in text]
    assert requests
    for text in requests:
        if "verdict_id" not in text:
            parse_request(text.encode(), max_bytes=10_000)


def test_feedback_in_the_readme_is_some() -> None:
    [text] = [text for text in _fenced(README, "json") if '"shows"' in text]
    parse_feedback(text.encode())


def test_verdict_in_the_readme_has_the_fields_of_one() -> None:
    [text] = [text for text in _fenced(README, "json") if "verdict_id" in text]
    verdict = Verdict.model_validate_json(text)
    assert verdict.model_dump(mode="json").keys() == json.loads(text).keys()
    assert verdict.categories


def test_architecture_names_every_module() -> None:
    rows = re.findall(r"^\| `([\w/]+)` \|", ARCHITECTURE.read_text(), re.M)
    modules = [
        path.relative_to(ROOT / "worker").with_suffix("").as_posix()
        for path in (ROOT / "worker").rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(rows) == sorted(modules)


def test_contributing_names_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    named = set(re.findall(r"make ([\w-]+)", CONTRIBUTING.read_text()))
    assert named == set(phony.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def _fenced(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.S | re.M)


if __name__ == "__main__":
    write()
