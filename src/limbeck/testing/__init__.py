"""Public conformance checks: every member of a family, Limbeck's or a user's own, must pass its suite."""

from limbeck.testing.claims import Claims
from limbeck.testing.objectives import ConformanceError, ObjectiveReport, Plain, check_objective
from limbeck.testing.students import StudentReport, check_student

__all__ = ["Claims", "ConformanceError", "ObjectiveReport", "Plain", "StudentReport", "check_objective", "check_student"]
