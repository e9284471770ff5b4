"""A question, and the documents that answer it among others (RULER's ``qa.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.suites.ruler_tasks.questions import Questions
from allmem.evaluation.suites.ruler_tasks.sample import Draw, Generator, Sample

__all__ = ["QuestionAnswering"]


@dataclass(frozen=True)
class QuestionAnswering(Generator):
    """The size is the number of documents."""

    questions: Questions

    def samples(self) -> int | None:
        return len(self.questions.asked)

    def smallest(self, draw: Draw) -> int:
        return len(self.questions.asked[draw.index].documents)

    def make(self, draw: Draw, size: int) -> Sample:
        numbers = draw.random()
        question, documents = self.questions.asked[draw.index], self.questions.documents
        chosen: list[int]
        if size < len(documents):
            own, related = question.documents, question.related
            others = size - len(own)
            if others > len(related):
                known = {*own, *related}
                rest = [i for i in range(len(documents)) if i not in known]
                chosen = [*own, *related, *numbers.sample(rest, others - len(related))]
            else:
                chosen = [*own, *numbers.sample(related, others)]
        else:
            rounds = -(-size // len(documents))
            chosen = (list(range(len(documents))) * rounds)[:size]
        # RULER takes one permutation for all samples of a run; here each has its own.
        numbers.shuffle(chosen)
        context = "\n\n".join(
            benchmark("ruler")["document"].format(i=i, document=documents[number])
            for i, number in enumerate(chosen, start=1)
        )
        texts = benchmark("ruler")["templates"]["qa"]
        return Sample(
            texts["template"].format(context=context, query=question.text),
            texts["answer_prefix"],
            question.answers,
            tuple(documents[number] for number in question.evidence),
            self.questions.material,
        )
