"""Before a run: what a student, a teacher or a recipe costs, and what scaling laws expect of it. Free of torch.

What things cost: `accounting` (parameters, FLOPs) over `config_sizes`, `teachers` (the catalogue), `devices`, `storage`
(bytes), `price` (a recipe), `study_price` (a study).

What to expect: `laws`, `family` (a model of every size), `allocate` (the best use of a budget), `compare` (crossovers,
efficiency), `choose` (among teachers that exist), `design` (an experiment); `minimise` searches for them.

Your own laws: `fit`, `law_files`, `formula`.

What is said: `answers` and `teacher_answers` (values for machines), `verdict` (sentences), `figures`. `quantities` and `sizes`
read what a user writes.
"""
