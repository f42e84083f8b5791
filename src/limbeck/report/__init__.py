"""The page by which a reader judges a study: every arm against its control, at equal tokens, seconds and FLOPs.

`study_page.write_study_report` is the entry. It reads a `cells.StudyView` and writes HTML, Markdown, figures and tables;
`from_runs.view_of_runs` makes such a view of any runs. Torch-free, so that a report starts at once.
"""
