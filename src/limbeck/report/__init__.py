"""The page by which a reader judges whether distillation worked: against a control without a teacher, at equal cost.

`page.write_report` is the entry. It reads runs (`limbeck.runs`) and what `limbeck cache info` says about stores, and writes one
HTML file. Torch-free, so that a report starts at once.
"""
