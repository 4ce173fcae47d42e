"""``python -m deploy.grafana`` writes the dashboards anew into the folder beside this file."""

from pathlib import Path

from deploy.grafana.overview import overview
from deploy.grafana.pipeline import pipeline
from deploy.grafana.policy import policy
from deploy.grafana.safety import safety

FOLDER = Path(__file__).parent / "dashboards"
PAGES = {page.__name__: page for page in (overview, pipeline, policy, safety)}


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / f"{name}.json").write_text(page())


if __name__ == "__main__":
    write()
