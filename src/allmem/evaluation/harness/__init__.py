"""Short tasks: their definitions come from lm-eval, the driving is ours.

lm-eval (``EleutherAI/lm-evaluation-harness``) builds prompts and scores answers; our runner asks
the model and keeps every answer. So a memory is measured by the same code as everything else, and
what is scored is what lm-eval would have scored, to the last digit. LiveCodeBench, which lm-eval
lacks, has its definition and its sandbox here.
"""
