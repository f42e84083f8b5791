from pathlib import Path


def write_study_report(view, *, folder):
    return Path(folder) / "report.html"
