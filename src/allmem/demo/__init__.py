"""The demo: one small model goes through everything that allmem does, and every figure is measured.

``books`` holds what it reads, ``steps`` what it does, ``examiner`` asks what is remembered,
``original`` is what all of it is compared with, ``report`` what it leaves behind.
"""

from allmem.demo.books import Question, load_questions
from allmem.demo.examiner import Examiner, Recalled
from allmem.demo.report import crossover, save_report
from allmem.demo.settings import DemoSettings
from allmem.demo.steps import Answer, Demo

__all__ = [
    "Answer",
    "Demo",
    "DemoSettings",
    "Examiner",
    "Question",
    "Recalled",
    "crossover",
    "load_questions",
    "save_report",
]
